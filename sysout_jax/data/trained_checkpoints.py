"""Small models of our own training that come with the package: attention with and without a sink, and nothing to download.

Each is a directory of `python -m sysout_jax.convert` beside its model card, `trained/NAME/README.md`.
"""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent / "trained"
#: Where a path is expected and nothing lies at it.
NAMES = ("backcopy-default", "backcopy-gate", "backcopy-context_scale")


def trained_checkpoint(name: str) -> Path:
    """Where the model of one of `NAMES` lies."""
    return DIRECTORY / name
