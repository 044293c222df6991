"""Directories and files that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sysout_jax.errors import InputError, RunError

LOCK = ".lock"
TEMPORARY = ".tmp"


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers, and whoever comes after a kill, see the old content or the new one. OSError when it cannot be written."""
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.write_bytes(content)
    os.replace(temporary, path)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, renamed to `out` when the block ends without an error and removed otherwise.

    It lies beside `out` as `.<name>.partial`. What a killed process left there is removed first; another process that is still
    writing there is not disturbed. Raises InputError in that case, when `out` exists and is not an empty directory, and when
    it cannot be made; RunError when writing fails later on (disk full).
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists already; name a new directory")
    staging = out.parent / f".{out.name}.partial"
    made = [parent for parent in staging.parents if not parent.exists()]
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / LOCK).open("w")
    except OSError as error:
        raise InputError(
            f"{out}: cannot be made ({error}); name a directory that can be written to"
        ) from None
    with lock:  # ends with the process, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{staging}: another process is writing it; wait for it or name another directory"
            ) from None
        try:
            for left in staging.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield staging
            (staging / LOCK).unlink()
            staging.replace(out)
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            for parent in made:
                parent.rmdir()
            if isinstance(error, OSError):
                raise RunError(f"{out}: not written ({error}); nothing is left of it") from None
            raise
