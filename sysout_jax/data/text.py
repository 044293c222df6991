"""From text to token sequences: non-overlapping windows of a text, or one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checks import shown
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.storage.files import check_readable

CHARACTERS_PER_TOKEN = (
    8  # how much of a long text to tokenise at first; doubled while it is not enough
)


@dataclass(frozen=True, eq=False)
class Windows:
    """Sequences of tokens and how they were made, which a perplexity depends on. numpy takes it for the tokens."""

    tokens: np.ndarray  # (N, T) int
    bos: bool = False  # every window starts with BOS
    joined_by: str | None = (
        None  # what stands between the rows of the text; None: the text as it is
    )

    @classmethod
    def of(cls, tokens: Any) -> Windows:
        """Tokens of which nothing else is known are windows of a text as it is, without BOS."""
        return tokens if isinstance(tokens, cls) else cls(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.tokens, dtype=dtype, copy=copy)


def read_text(path: Path) -> str:
    """A UTF-8 text file; InputError when it is missing, empty or not text."""
    check_readable(path, "expected a readable text file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: {reason}; expected a readable text file") from None
    if not text.strip():
        raise InputError(f"{path}: holds no text; expected a text file with words in it")
    return text


def text_windows(
    tokenizer: Tokenizer, text: str, num_sequences: int, length: int, bos: bool
) -> np.ndarray:
    """The first windows of a text that do not overlap, (N, T) int32; with `bos` each one starts with BOS.

    Fewer than `num_sequences` where the text is shorter, and one shorter sequence where it does not fill a single window.
    Raises InputError when the text gives no token, or when BOS is asked for and the model names none.
    """
    per_window = length - bos
    if num_sequences < 1 or per_window < 1:
        raise InputError(
            f"{num_sequences} sequences of {length} tokens hold no text; ask for at least 1 of {1 + bos}"
        )
    ids = _first_tokens(tokenizer, text, num_sequences * per_window)
    if not ids:
        raise InputError("the text gives no token; expected some words")
    count = min(num_sequences, len(ids) // per_window)
    rows = (
        np.array(ids[: count * per_window]).reshape(count, per_window) if count else np.array([ids])
    )
    return _with_bos(tokenizer, rows) if bos else rows.astype(np.int32)


def prompt_sequence(tokenizer: Tokenizer, prompt: str, bos: bool) -> np.ndarray:
    """One prompt as (1, T) int32. Raises InputError when it gives no token."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise InputError(f"the prompt {shown(prompt)} gives no token; expected some text")
    rows = np.array([ids], np.int32)
    return _with_bos(tokenizer, rows) if bos else rows


def _first_tokens(tokenizer: Tokenizer, text: str, count: int) -> list[int]:
    """The first `count` tokens without tokenising much more than they need."""
    size = CHARACTERS_PER_TOKEN * count
    while True:
        ids = tokenizer.encode(text[:size])
        # the last tokens of a cut text may differ from those of the whole one
        if size >= len(text) or len(ids) >= count + 16:
            return ids[:count]
        size *= 2


def _with_bos(tokenizer: Tokenizer, rows: np.ndarray) -> np.ndarray:
    if tokenizer.bos_id is None:
        raise InputError(
            "BOS was asked for, but the model's config names no bos_token_id of its vocabulary; "
            "read the text without BOS"
        )
    first = np.full((len(rows), 1), tokenizer.bos_id)
    return np.concatenate([first, rows], axis=1).astype(np.int32)
