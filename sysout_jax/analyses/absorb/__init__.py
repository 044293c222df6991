"""A prefix absorbed into a model, and what that removes: `so.absorb`."""
