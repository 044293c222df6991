"""Analyses: what is asked of a model. One folder each: measure (arrays to a dataclass), figures, page; everything about it is there."""
