"""Limits for tests of hostile input: what hangs or takes all memory fails instead."""

from __future__ import annotations

import contextlib
import signal
import tracemalloc
from collections.abc import Iterator

SECONDS = 20  # what is bounded takes far less, also on a loaded machine; what is not, minutes
MEMORY = 200 * 2**20  # bytes beyond the file's own


@contextlib.contextmanager
def within(seconds: float = SECONDS) -> Iterator[None]:
    """Fails when the block takes longer, also where it is stuck in opening a file."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_below(limit: int = MEMORY) -> Iterator[None]:
    """Fails when Python or numpy hold more than `limit` bytes at any time in the block."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"
