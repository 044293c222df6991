"""Is this a file that can be read, and is it still the same? Asked before it is opened: opening a FIFO waits for ever, and a device never ends."""

from __future__ import annotations

import os
from pathlib import Path

from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name


def mark_of(file: Path) -> tuple[int, ...] | None:
    """What changes when somebody writes or replaces a file; None where it is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def check_readable(path: Path, todo: str, most: int | None = None) -> Path:
    """The path of a regular file that is not empty, may be read, and has at most `most` bytes.

    Raises InputError, one line that ends in `todo`, for anything else.
    """
    shown = printable_name(str(path))
    try:
        status = os.stat(path)
        if not os.path.isfile(path):
            raise InputError(f"{shown}: not a regular file; {todo}")
        with open(path, "rb"):  # permissions alone do not tell
            pass
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a character in the name
        reason = error.strerror if isinstance(error, OSError) else "no name that a file can have"
        raise InputError(f"{shown}: {reason}; {todo}") from None
    if status.st_size == 0:
        raise InputError(f"{shown}: is empty; {todo}")
    if most is not None and status.st_size > most:
        raise InputError(
            f"{shown}: holds {status.st_size:,} bytes, at most {most:,} are read; {todo}"
        )
    return path
