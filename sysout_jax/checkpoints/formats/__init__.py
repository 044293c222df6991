"""Checkpoints of others: each format opens as a config, weights under our names, and the tokenizer beside or inside it."""
