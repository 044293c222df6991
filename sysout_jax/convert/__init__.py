"""Other people's checkpoints: one declarative name table per family, strict readers, and the command that converts."""
