"""Where unfinished output lies: directories that whoever comes next recognises as ours, and knows whether somebody still works there.

A workspace is a directory `.<name>.partial` beside the place where `name` will appear. It carries a marker that says what it is, and the
process that works there holds a lock on the marker, which ends with the process. A workspace that nobody holds was left by a killed
process; the next one that writes under the same name to the same place removes it. Links, and directories without our marker, belong
to somebody else: they are never followed, emptied or replaced, another name is taken instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from sysout_jax import interrupts
from sysout_jax.errors import InputError

MARKER = ".sysout_jax"
TEXT = b"Unfinished output of sysout_jax. Unless a process holds a lock on this file, its directory can be removed.\n"
# nobody gives a directory these by chance: before it has its marker, it is known by them
MODE = stat.S_ISVTX | stat.S_IRWXU
PATIENCE = 20  # attempts to remove one, over a second
MOST = 100  # workspaces of one name
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


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
        with interrupts.cleaning_up(partial(_remove, mine)):
            yield mine


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
                    _mark(path, lock)
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        except FileNotFoundError:
            pass  # it has just been removed
        finally:
            os.close(directory)


def _mark(path: Path, lock: int) -> None:
    """Write into a new marker what it is; a workspace that cannot even take that (disk full) is removed."""
    if not os.fstat(lock).st_size:
        try:
            os.write(lock, TEXT)
        except OSError:
            _remove(path)
            raise


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
    """Remove a workspace, its marker last: whatever ends us on the way, the rest is still recognised.

    Threads of an interrupted write may still put files into it.
    """
    for _ in range(PATIENCE):
        try:
            _empty(path)
            os.unlink(path / MARKER)
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)
