"""What a format of checkpoints is, as a value. A new one is one file here that ends in `FORMAT`, and one line in `loading.FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from sysout_jax.config import ModelConfig
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.weights import StoredWeights


class Opened(NamedTuple):
    """What a checkpoint holds, whatever its format."""

    config: ModelConfig
    source: StoredWeights
    bos_id: int | None
    tokenizer: Tokenizer | None
    accepted: tuple[str, ...] = ()
    """Settings of its config that nothing computes with and that the user accepts."""
    notes: tuple[str, ...] = ()
    """What is odd about it and no reason to refuse it, a sentence each."""


class Format(NamedTuple):
    """A kind of checkpoint."""

    name: str
    """In words, as it ends "expected …"."""
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Collection[str]], Opened]
    """Of what it recognises, and the settings that the user accepts; InputError when it is not whole."""


def tokenizer_beside(directory: Path, bos_id: int | None) -> Tokenizer | None:
    """The tokenizer.json that lies there, or none."""
    file = directory / tokenizers.FILE
    # a dangling link is a damaged tokenizer, not a model without one
    return Tokenizer.from_file(file, bos_id) if os.path.lexists(file) else None
