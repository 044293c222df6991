"""Directories and files that appear whole or not at all, whatever ends the process that writes them.

What is unfinished lies in a workspace: a directory `.<name>.partial` beside the place where the result will appear. It carries a marker
that says so, and the process that works there holds a lock on the marker, which ends with the process. A workspace that nobody
holds was left by a killed process; the next one that writes under the same name to the same place removes it. Links, and directories
without our marker, belong to somebody else: they are never followed, emptied or replaced, another name is taken instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sysout_jax.errors import InputError, RunError
from sysout_jax.places import nearest, place_of, refusal

MARKER = ".sysout_jax"
TEXT = b"Unfinished output of sysout_jax. Unless a process holds a lock on this file, its directory can be removed.\n"
MODE = (
    stat.S_ISVTX | stat.S_IRWXU
)  # nobody gives a directory these by chance: without its marker yet, it is known by them
MOST = 100  # workspaces of one name
NEW = "new"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


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
def workspace(parent: Path, name: str, *, alone: bool = False) -> Iterator[Path]:
    """An empty directory in `parent` for what will become `name`; at the end it is removed with all that is still in it.

    What killed processes left for the same name is removed first. While other processes work under this name, there is
    another workspace for this one or, with `alone`, an InputError. OSError when it cannot be made.
    """
    mine: Path | None = None
    with ExitStack() as stack:
        for number in range(MOST):
            path = Path(parent) / (f".{name}.partial-{number}" if number else f".{name}.partial")
            try:
                lock = _lock(path, make=mine is None)
            except BlockingIOError:
                if alone:
                    raise InputError(
                        f"{path}: another process is writing there; wait for it or name another directory"
                    ) from None
                continue
            if lock is None:
                continue
            with ExitStack() as this:
                this.callback(os.close, lock)
                this.callback(_remove, path)
                _empty(path)
                if mine is None:
                    mine = path
                    stack.push(this.pop_all())
        if mine is None:
            raise FileExistsError(errno.EEXIST, "too many directories of this name", str(path))
        yield mine


@contextmanager
def new_parents(directory: Path) -> Iterator[None]:
    """Make a directory and its parents; after an error those that were made here go again, unless somebody has filled them."""
    made = []
    try:
        for folder in reversed([directory, *directory.parents]):
            if not folder.exists():
                with suppress(FileExistsError):  # of another process
                    folder.mkdir()
                    made.append(folder)
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def is_workspace(path: Path) -> bool:
    """Whether a directory is one that this module made for what is unfinished."""
    if not path.name.startswith(".") or ".partial" not in path.name:
        return False
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _is_ours(directory)
    finally:
        os.close(directory)


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


def _lock(path: Path, make: bool) -> int | None:
    """The lock on the workspace at `path`, made first if there is nothing; None when it is no workspace.

    BlockingIOError while another process holds it. Where the file system knows no locks, only what was made here is ours.
    """
    while True:
        made = make and _made(path)
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if not _is_ours(directory):
                return None
            lock = os.open(MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory)
            try:
                locks = _flock(lock)
                # not when the process that held it has just removed it
                if os.fstat(lock).st_nlink and os.path.samestat(os.fstat(directory), path.lstat()):
                    if not locks and not made:
                        os.close(lock)
                        return None
                    if not os.fstat(lock).st_size:
                        os.write(lock, TEXT)
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        except FileNotFoundError:
            pass  # it has just been removed
        finally:
            os.close(directory)


def _made(path: Path) -> bool:
    try:
        os.mkdir(path, MODE)
    except FileExistsError:
        return False
    return True


def _flock(lock: int) -> bool:
    """Lock an open file, False where the file system has no locks; BlockingIOError while another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _is_ours(directory: int) -> bool:
    """Whether an open directory carries our marker, or has only just been made or emptied."""
    names = os.listdir(directory)
    if MARKER not in names:
        return not names and os.fstat(directory).st_mode & 0o1777 == MODE
    try:
        marker = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(marker).st_mode):
            return False
        text = os.read(marker, len(TEXT) + 1)
    finally:
        os.close(marker)
    return text == TEXT or (not text and names == [MARKER])


def _empty(path: Path) -> None:
    for entry in list(os.scandir(path)):
        if entry.name == MARKER:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _remove(path: Path) -> None:
    """Remove a workspace, its marker last: whatever ends us on the way, the rest is still recognised."""
    with suppress(OSError):
        _empty(path)
        os.unlink(path / MARKER)
        os.rmdir(path)
