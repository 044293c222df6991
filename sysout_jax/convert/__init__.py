"""The command that converts checkpoints, and its proof against transformers."""
