"""Edits of weights and of elements of h, and what they do to a model; the analyses decide which."""
