"""Texts to token ids in several processes, results in the order of the texts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sysout_jax.data.tokenizers import BYTES, Tokenizer
from sysout_jax.errors import RunError

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
        found: dict[str, list[np.ndarray]] = {}
        for piece in task.pieces:
            parts = found.setdefault(piece.split, [])
            if piece.text:
                parts.append(self.encode(piece.text))
            if piece.ends:
                parts.append(self._end)
        return {split: np.concatenate(parts) for split, parts in found.items()}

    def encode(self, text: str) -> np.ndarray:
        if self._bytes:  # the same ids, a hundred times faster
            return np.frombuffer(text.encode(), np.uint8).astype(self._end.dtype)
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return np.array(ids, self._end.dtype)

    def joins(self) -> bool:
        """Whether the ids of a text are those of its parts where it is cut at the end of a word."""
        parts = [self.encode(part) for part in PROBE]
        return np.array_equal(self.encode("".join(PROBE)), np.concatenate(parts))


_encoder: Encoder  # of this worker process


def encode_in_order(
    tasks: Iterable[Task], encoder: Encoder, file: Path, arguments: tuple, workers: int
) -> Iterator[tuple[Task, dict[str, np.ndarray]]]:
    """Each task with its ids, in order. At most two tasks per worker are read ahead.

    One worker is this process itself. Others build their encoder from the tokenizer `file` and the remaining `arguments`.
    """
    if workers == 1:
        for task in tasks:
            yield task, encoder(task)
        return
    pool = ProcessPoolExecutor(workers, _context(), _start_worker, (file, arguments))
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(_encode, task)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool:
        raise RunError(
            f"one of {workers} workers was killed, perhaps for want of memory; use fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _context():
    """Not a fork of this process, whose threads may hold locks; one clean process that has imported us and is forked."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(file: Path, arguments: tuple) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(Tokenizer.from_file(file), *arguments)


def _end_with_parent() -> None:
    """A killed parent closes no queue, and a worker would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(task: Task) -> dict[str, np.ndarray]:
    return _encoder(task)
