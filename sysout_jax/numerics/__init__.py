"""Numerics that know nothing of models: exact medians and counts in blocks, pooling for pictures, bootstrap intervals."""
