"""Perplexity under quantisation and pruning, and what outliers have to do with it."""
