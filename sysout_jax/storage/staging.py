"""Directories and files that appear whole or not at all, whatever ends the process that writes them.

They are finished in a workspace beside their place (`workspaces.py`) and then take it in one step.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sysout_jax import interrupts
from sysout_jax.errors import InputError, RunError
from sysout_jax.storage.places import nearest, place_of, refusal
from sysout_jax.storage.workspaces import workspace

NEW = "new"


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers, and whoever comes after a kill, see the old content or the new one. OSError when it cannot be written."""
    path = Path(path)
    with workspace(path.parent, path.name) as work:
        with open(work / NEW, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work / NEW, path)
        _sync(path.parent)


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, moved to `out` when the block ends without an error and removed otherwise.

    Raises InputError when `out` cannot become a new directory (`check_out`) or another process is writing it; RunError when
    writing fails later on (disk full).
    """
    place = place_of(out, new=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(new_parents(place.parent))
            work = stack.enter_context(workspace(place.parent, place.name, alone=True))
            place_of(out, new=True)  # another process may have finished it meanwhile
            new = work / NEW
            new.mkdir()
        except OSError as error:
            raise refusal(out, error) from None
        try:
            yield new
            sync(new)
            _take_place(new, place)
        except OSError as error:
            raise RunError(f"{out}: not written ({error}); nothing is left of it") from None


def check_out(
    out: Path, *, new: bool, name: str | None = None, apart: tuple[Path, ...] = ()
) -> None:
    """Refuse, before any work is done, what cannot be written to: it is tried, and nothing is left of the trial.

    `new`: `out` must not exist or be an empty directory, as `new_directory` needs it. Otherwise files called after `name` will be
    put into it. It may not lie inside one of `apart`. Raises InputError.
    """
    place = place_of(out, new=new)
    for source in apart:
        if place.is_relative_to(os.path.realpath(source)):
            raise InputError(
                f"{out}: lies inside {source}, which is read; name a place outside of it"
            )
    try:
        base = place.parent if new and place.exists() else nearest(place)
        with workspace(base, name or place.name, alone=new) as work:
            trial = work / (place.relative_to(base) if place != base else NEW)
            trial.mkdir(parents=True)
            if new and place.exists():
                _take_place(trial, place)
    except OSError as error:
        raise refusal(out, error) from None


@contextmanager
def new_parents(directory: Path) -> Iterator[None]:
    """Make a directory and its parents; after an error those that were made here go again, unless somebody has filled them."""
    made: list[Path] = []

    def remove() -> None:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()

    with interrupts.cleaning_up(remove):
        try:
            for folder in reversed([directory, *directory.parents]):
                if not folder.exists():
                    with suppress(FileExistsError):  # of another process
                        folder.mkdir()
                        made.append(folder)
            yield
        except BaseException:
            remove()
            raise


def sync(directory: Path) -> None:
    """Have everything below a directory on the disk before its name says that it is whole."""
    for folder, _, files in os.walk(directory):
        for file in files:
            _sync(Path(folder) / file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if path.is_dir():
            with suppress(OSError):  # some file systems know this for files only
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(new: Path, place: Path) -> None:
    """Move a directory to where there is nothing yet or an empty one, whose mode and owner it takes over."""
    if place.exists():
        there = place.stat()
        new.chmod(stat.S_IMODE(there.st_mode))
        with suppress(OSError):
            os.chown(new, there.st_uid, there.st_gid)
    os.replace(new, place)
    _sync(place.parent)
