"""How a command ends on Ctrl-C and SIGTERM: within two seconds, with one line, at whatever moment.

Python hands a signal to the main thread between two of its own instructions: not while XLA compiles, and what it then raises can land
in a callback of C++ code, which crashes, or in a finaliser, which drops it. So nothing is raised here. A thread hears of the signal at
once (`signal.set_wakeup_fd`), has the clean-ups done that are registered, and ends the process; the main thread stands still meanwhile.

`python -m analyze.lifecycle` imports this module before all else. A signal that comes earlier, while the interpreter itself starts
(some hundredths of a second), is Python's to answer. In other processes, those that import the library, nothing is installed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal is gone",
}
PATIENCE = 1.2  # seconds that clean-ups, and what must not be cut short, may take
COMMANDS = re.compile(r"(-\w*m)?(?P<package>analyze|train|sysout_jax(?=\.convert))(\.\w+)*")

_cleanups: dict[object, Callable[[], object]] = {}
_forking = threading.local()
_whole = threading.Lock()  # held while the main thread does what must not be cut short
_keeper: int | None = None  # the thread that does it
_on_terminate: Callable[[], object] | None = None
_ending: int | None = None  # the signal that ends this process
_wake: int | None = (
    None  # where the signals' numbers are written; None: this process is not guarded
)
_status: int | None = None  # of a main function that has returned


def guard() -> None:
    """Answer SIGINT, SIGTERM and SIGHUP in this process from now on; a signal that whoever started it ignores stays ignored."""
    global _wake
    if _wake is not None:
        return
    _open_standard_streams()
    read, _wake = os.pipe()
    os.set_blocking(_wake, False)
    signal.set_wakeup_fd(_wake, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name="interrupts", daemon=True).start()
    defaults: tuple[tuple[signal.Signals, object], ...] = (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    )
    for number, default in defaults:
        if signal.getsignal(number) == default:
            signal.signal(number, _stand_still)
    os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_release)
    atexit.register(_end_at_once)  # the first that is registered is the last that runs


@contextlib.contextmanager
def cleaning_up(action: Callable[[], object]) -> Iterator[None]:
    """Within, `action` is called when a signal ends the process, in another thread; what it raises is dropped.

    It must bear that what it cleans up is still being written to, and it may be cut short: the next run clears what is left.
    """
    key = object()
    _cleanups[key] = action
    try:
        yield
    finally:
        del _cleanups[key]


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Within, a moment that a signal should not cut short: it waits until the end of the block, `PATIENCE` at most."""
    global _keeper
    try:
        with _whole:
            _keeper = threading.get_ident()
            yield
    finally:
        _keeper = None
        if _ending is not None:
            _wait()


def on_terminate(action: Callable[[], object]) -> None:
    """From now on SIGTERM calls `action`, in another thread, instead of ending the process."""
    global _on_terminate
    _on_terminate = action


def leave(status: int) -> NoReturn:
    """Exit with `status`. A guarded process does so without taking the interpreter apart, under which threads of C++ code can crash."""
    global _status
    _status = status
    sys.exit(status)


def _stand_still(number: int, frame: object) -> None:
    """The handler: runs in the main thread, some time after the watching thread has heard of the signal."""
    global _ending
    assert _wake is not None
    with contextlib.suppress(OSError):
        os.write(_wake, bytes([number]))  # again: a library may have taken the wake-up for its own
    if number == signal.SIGTERM and _on_terminate is not None:
        return
    _ending = number
    if _keeper != threading.get_ident():
        _wait()


def _wait() -> NoReturn:
    while True:
        time.sleep(60)


def _watch(read: int) -> None:
    while True:
        for number in os.read(read, 64):
            if number == signal.SIGTERM and _on_terminate is not None:
                _on_terminate()
            elif number in WORDS:
                _end(number)


def _end(number: int) -> NoReturn:
    global _ending
    _ending = number
    try:
        finish = threading.Thread(target=_finish, args=(number,), daemon=True)
        finish.start()
        finish.join(PATIENCE)
    finally:
        os._exit(128 + number)


def _finish(number: int) -> None:
    _whole.acquire(timeout=PATIENCE / 2)
    line = ("\r\x1b[K" if os.isatty(2) else "") + WORDS[signal.Signals(number)] + "\n"  # over a bar
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    # other threads still run and may complain that things vanish below them
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for action in reversed(list(_cleanups.values())):  # what was made last goes first
        with contextlib.suppress(Exception):
            action()


def _end_at_once() -> None:
    if _ending is not None:  # the other thread is at it
        _wait()
    if _status is None:  # an exception whose traceback has been printed
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(_status)


def _hold() -> None:
    """Before a fork: a signal that comes for the child waits until it answers signals as other processes do."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, WORDS)


def _go_on() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _release() -> None:
    """A forked child has no watching thread."""
    signal.set_wakeup_fd(-1)
    for number in WORDS:
        if signal.getsignal(number) is _stand_still:
            signal.signal(number, signal.SIG_DFL)
    _go_on()


def _open_standard_streams() -> None:
    """Where one is closed, the next file that is opened would take its number, and messages of C++ code would end up in it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _is_command() -> bool:
    """Whether `python -m` is about to run one of our commands; while it looks for the module, `sys.argv` begins with "-m"."""
    if sys.argv[:1] != ["-m"] or len(sys.orig_argv) <= len(sys.argv):
        return False
    command = COMMANDS.fullmatch(sys.orig_argv[-len(sys.argv)])
    if command is None:
        return False
    package = sys.modules.get(command["package"])  # half imported: it is what imports us
    beside = os.path.dirname(os.path.dirname(__file__))
    return os.path.dirname(os.path.dirname(getattr(package, "__file__", None) or "")) == beside


if _is_command():
    guard()
