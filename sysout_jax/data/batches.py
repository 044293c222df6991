"""Batches for training out of a data directory: windows of T + 1 tokens in an order that a seed fixes, loaded ahead by threads.

Window i holds the tokens [i·T, i·T + T]: inputs and targets are its first and last T tokens, so every token but the first (and a rest
shorter than T) is a target exactly once per epoch. Windows cross document ends, as nanoGPT's do. Each epoch is another
permutation of all windows, and epochs follow each other without a gap: a batch may span two.

Files that were cut into windows beforehand (meta.json: `windows`) are read as those: window i is [i·(T + 1), i·(T + 1) + T], it begins with
BOS, and only BOS is never a target.
"""

from __future__ import annotations

from pathlib import Path

import grain
import jax
import numpy as np

from sysout_jax.data.token_files import bin_path, check_ids, open_tokens, read_meta
from sysout_jax.errors import InputError

THREADS, BATCHES_AHEAD = 2, 8


class _Windows:
    """A grain data source: window i of a split, (T + 1,) int32, its ids below `vocab_size` where one is given."""

    def __init__(self, directory: Path, split: str, length: int, vocab_size: int | None = None):
        if length < 1:
            raise InputError(f"sequences of {length} tokens; expected at least 1")
        self._tokens, self._length = open_tokens(directory, split), length
        self._path, self._vocab_size = bin_path(directory, split), vocab_size
        meta = read_meta(directory)
        cut = meta.windows if meta else None
        if cut and cut.length != length:
            raise InputError(
                f"{self._path}: was cut into windows for sequences of {cut.length} tokens; train on those, not on {length}, or prepare "
                "the text again"
            )
        self._stride = length + 1 if cut else length
        if not len(self):
            raise InputError(
                f"{self._path}: holds {len(self._tokens)} tokens, fewer than one sequence of {length} and its last target; "
                "prepare more text or train on shorter sequences"
            )

    def __len__(self) -> int:
        return (len(self._tokens) - self._length - 1) // self._stride + 1

    def __getitem__(self, index) -> np.ndarray:
        start = int(index) * self._stride
        ids = self._tokens[start : start + self._length + 1]
        if self._vocab_size is not None:
            check_ids(ids, start, self._path, self._vocab_size)
        return ids.astype(np.int32)


def sequences_per_epoch(directory: Path, split: str, length: int) -> int:
    """How many windows of `length` + 1 tokens a split holds. Raises InputError where it holds none."""
    return len(_Windows(directory, split, length))


def batches(
    directory: Path,
    split: str,
    batch_size: int,
    length: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    vocab_size: int | None = None,
) -> grain.DatasetIterator[np.ndarray]:
    """This process's rows of every global batch, (batch_size / process_count, T + 1) int32, for ever.

    The rows of all processes, in their order, are the batch that a single process would see. Processes default to those of jax.

    `get_state()` is a small dict, the number of batches taken, and the same in every process; `set_state` continues after it,
    also with another number of processes or threads. It says nothing of directory, batch size, length and seed: keep these.

    Raises InputError where the files are missing or damaged, or too short for one window, and where `process_count` does not
    divide `batch_size` (the global one); while iterating, where a window holds an id that is not below `vocab_size`.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    if batch_size < 1 or batch_size % count:
        raise InputError(
            f"a batch of {batch_size} sequences cannot be divided over {count} processes; name a multiple of {count}"
        )
    windows = grain.MapDataset.source(_Windows(directory, split, length, vocab_size))
    # without a remainder to drop, but the length of the endless data set overflows otherwise
    local = windows.seed(seed).shuffle().repeat().batch(batch_size // count, drop_remainder=True)
    return iter(
        local[index::count].to_iter_dataset(
            grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BATCHES_AHEAD)
        )
    )


def validation_slice(
    directory: Path, length: int, num_sequences: int, vocab_size: int | None = None
) -> np.ndarray:
    """Windows of val.bin spread evenly over it, (N, T + 1) int32, the same whenever and wherever asked.

    N is `num_sequences`, or all windows where val.bin holds fewer. Raises InputError as `batches` does.
    """
    windows = _Windows(directory, "val", length, vocab_size)
    if num_sequences < 1:
        raise InputError(f"{num_sequences} sequences for validation; ask for at least 1")
    count = min(num_sequences, len(windows))
    return np.stack([windows[i * len(windows) // count] for i in range(count)])
