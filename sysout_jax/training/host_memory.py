"""Memory of a training process on a CPU: what one step frees, the next one gets back."""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next step, instead of returning them to the kernel, which hands out zeroed pages one by one.

    XLA's CPU backend allocates the temporaries of a step anew every time; a step of a small model spends a quarter of its time on those pages. The
    process keeps the most that it ever held, which is what training needs anyway, and no others must share it: this is for programs, not for
    libraries. To be called before jax computes; without effect where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # threads' own arenas cannot hold large blocks
        mallopt(_M_MMAP_MAX, 0)  # blocks that are mapped one by one cannot be kept
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
