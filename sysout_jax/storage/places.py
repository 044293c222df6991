"""Where output may go: what a path leads to, why nothing can be written there, and the user's cache directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sysout_jax.errors import InputError, RunError
from sysout_jax.printable import printable, printable_name

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_directory() -> Path:
    """$SYSOUT_CACHE, or sysout_jax below the user's cache directory. InputError for a user without a home."""
    if own := os.environ.get("SYSOUT_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sysout_jax"
    except RuntimeError:
        raise InputError(
            "there is no home directory; set SYSOUT_CACHE to one for downloads"
        ) from None


def place_of(out: Path, *, new: bool) -> Path:
    """The absolute path that `out` leads to, links followed: a directory, or nothing yet below one. Nothing is made.

    Raises InputError where there is something else: a file, a link that leads nowhere, a directory that cannot be looked into and,
    with `new`, one that is not empty or that this program runs in.
    """
    out = Path(out)
    try:
        place, problem = _look(out, new)
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise refusal(out, error) from None
    if problem:
        raise InputError(f"{printable(str(out))}: {problem}")
    return place


def nearest(place: Path) -> Path:
    """The place itself if it exists, else the nearest of its parents."""
    return next(folder for folder in (place, *place.parents) if folder.exists())


def refusal(out: Path, error: Exception) -> InputError | RunError:
    """What to say when the system refuses something on the way to `out`: bad input, unless the disk is full."""
    reason = getattr(error, "strerror", None) or str(error)
    where = getattr(error, "filename", None)
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        reason = "name too long"
    elif getattr(error, "errno", None) in FULL:
        return RunError(f"{printable(str(out))}: not written ({reason}); free some space")
    elif where and os.fspath(where) != os.fspath(out):
        reason = f"{printable_name(str(where))}: {reason}"
    return InputError(
        f"{printable(str(out))}: cannot be written to ({reason}); name another directory"
    )


def _exists(path: Path) -> bool:
    """Whether there is anything under this name, a link that leads nowhere included."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _look(out: Path, new: bool) -> tuple[Path, str | None]:
    """Where the path leads, and what is wrong with that."""
    there = next(path for path in (out, *out.absolute().parents) if _exists(path))
    name = "is" if there == out else f"{printable_name(str(there))} is"
    place = Path(os.path.realpath(out))
    if there.is_symlink() and not there.exists():
        return place, f"{name} a link that leads nowhere; name a directory"
    if not there.is_dir():
        return place, f"{name} a file; name a directory"
    if new and there == out:
        if any(place.iterdir()):
            return place, "exists already, with files in it; name a new directory"
        if place == Path.cwd():
            return place, "is the directory that this program runs in; name a new one"
    return place, None
