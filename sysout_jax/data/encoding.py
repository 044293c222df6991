"""Texts to token ids in several processes, results in the order of the texts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from sysout_jax.data import tokenizer_guard
from sysout_jax.data.tokenizers import BYTES, Tokenizer
from sysout_jax.data.workers import answers

PROBE = ("The year", " 1923", "\nand so", "\r\n  on")


@dataclass(frozen=True)
class Piece:
    """Part of a document. `ends` says that the document ends with it."""

    split: str
    text: str
    ends: bool


@dataclass(frozen=True)
class Task:
    """What one call encodes, and how many bytes of the sources have been read when it is done."""

    pieces: Sequence[Piece]
    position: int


class Encoder:
    """Pieces to the ids of each split, documents ended with `eos_id`. Special tokens that a text spells out are text."""

    def __init__(self, tokenizer: Tokenizer, name: str, eos_id: int | None, dtype: str):
        self._backend = tokenizer.backend
        self._backend.encode_special_tokens = True
        self._bytes = name == BYTES
        self._end = np.array([] if eos_id is None else [eos_id], dtype)

    def __call__(self, task: Task) -> dict[str, np.ndarray]:
        by_split: dict[str, list[np.ndarray]] = {}
        for piece in task.pieces:
            parts = by_split.setdefault(piece.split, [])
            if piece.text:
                parts.append(self.encode(piece.text))
            if piece.ends:
                parts.append(self._end)
        return {split: np.concatenate(parts) for split, parts in by_split.items()}

    def encode(self, text: str) -> np.ndarray:
        if self._bytes:  # the same ids, a hundred times faster
            return np.frombuffer(text.encode(), np.uint8).astype(self._end.dtype)
        return np.array(tokenizer_guard.encode(self._backend, text), self._end.dtype)

    def joins(self) -> bool:
        """Whether the ids of a text are those of its parts where it is cut at the end of a word."""
        parts = [self.encode(part) for part in PROBE]
        return np.array_equal(self.encode("".join(PROBE)), np.concatenate(parts))


def encode_in_order(
    tasks: Iterable[Task], encoder: Encoder, arguments: tuple, workers: int
) -> Generator[tuple[Task, dict[str, np.ndarray]], None, None]:
    """Each task with its ids, in order. At most two tasks per worker are read ahead.

    One worker is this process itself with `encoder`. Others make their own by `encoder_of(*arguments)`.
    """
    if workers > 1:
        yield from answers(tasks, encoder_of, arguments, workers)
        return
    for task in tasks:
        yield task, encoder(task)


def encoder_of(tokenizer_json: str, name: str, eos_id: int | None, dtype: str) -> Encoder:
    """The encoder of a tokenizer.json's text: a file could be gone before a worker has started."""
    backend = tokenizers.Tokenizer.from_str(tokenizer_json)
    backend.no_truncation()
    backend.no_padding()
    return Encoder(Tokenizer(backend), name, eos_id, dtype)
