"""How every command line begins and ends. 0 done, 2 bad input, 1 a run that cannot go on: one line on stderr, no traceback for what is no bug.

130 and 143, interrupted and terminated: `sysout_jax/interrupts.py`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from sysout_jax import interrupts, notices
from sysout_jax.commands import compilations
from sysout_jax.errors import InputError, RunError, UnknownSettings
from sysout_jax.printable import LONGEST, escaped, printable, shell_word

CANNOT_GO_ON = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output (`| head`) has had enough
#: Libraries that log what is no news to the user of a command.
TALKATIVE = ("absl", "etils", "jax", "orbax")


_unwritten: OSError | None = None  # why standard output took something no more


class Unprinted(Exception):
    """The help cannot be written; its argument is the OSError."""


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and leave the process with the status that its outcome stands for.

    InputError becomes its one line on stderr and status 2; RunError and want of memory the same with status 1. A standard output
    that takes nothing more ends no work: afterwards a full disk is one line and status 1, a closed pipe its status alone. Anything
    else that is raised is a bug and keeps its traceback.
    """
    global _unwritten
    _unwritten = None
    _ready_streams()
    jax.config.update(
        "jax_enable_x64", False
    )  # results are of the dtypes that flags name, not of the environment's
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _plain_notices():
        status = _status(main)
    compilations.hand_over()
    interrupts.leave(status)


def say(text: str) -> None:
    """Print lines that may hold text from outside: what a terminal would obey is escaped. Where nothing takes them, the work goes on."""
    try:
        # at once: what stays in the buffer fails where others flush it, as `multiprocessing` does
        print(escaped(text, kept="\n"), flush=True)
    except OSError as error:
        _print_no_more(error)


def out_of_memory(error: Exception) -> bool:
    """Whether it is want of memory, of the host or of a device."""
    device = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return device or isinstance(error, MemoryError)


class _Plain(logging.Handler):
    """Notices as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        _tell(record.getMessage())


@contextlib.contextmanager
def _plain_notices() -> Iterator[None]:
    """Within, the library's notices go past the handlers that others give to the root logger, whose format names levels and modules."""
    handler = _Plain()
    notices.log.addHandler(handler)
    notices.log.propagate = False
    try:
        yield
    finally:
        notices.log.removeHandler(handler)
        notices.log.propagate = True


def _ready_streams() -> None:
    """Streams that take every character, whatever the terminal can show, also where whoever started us has closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _status(main: Callable[[], None]) -> int:
    status = 0
    try:
        main()
    except UnknownSettings as error:  # all commands that open checkpoints have this flag
        status = BAD_INPUT
        _tell(f"error: {printable(str(error))}{_accepting(error)}")
    except InputError as error:
        status = _refuse(str(error), BAD_INPUT)
    except RunError as error:
        status = _refuse(str(error), CANNOT_GO_ON)
    except SystemExit as ending:  # --help
        status = ending.code if isinstance(ending.code, int) else 0
    except KeyboardInterrupt:
        status = INTERRUPTED
        _tell("interrupted")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not out_of_memory(error):
            raise
        status = _refuse(f"out of memory ({error}); ask for less at a time", CANNOT_GO_ON)
    except Unprinted as error:
        _print_no_more(error.args[0])
    except BrokenPipeError as error:  # of what is printed without `say`
        _print_no_more(error)
    try:
        # what is still in the buffer must fail here, where it is told, not when the interpreter ends
        sys.stdout.flush()
    except OSError as error:
        _print_no_more(error)
    return status or _status_of_output()


def _accepting(error: UnknownSettings) -> str:
    """The flag that accepts these settings, to be pasted; nothing where no command line can hold it."""
    names = list(dict.fromkeys((*error.given, *error.names)))
    dashed = [name for name in names if name.startswith("-")]  # taken for flags, except behind a =
    for name in dashed[:1]:
        names.remove(name)
    words = [shell_word(name) for name in names]
    if dashed[1:] or any(word is None for word in words) or None in map(shell_word, dashed):
        return ""
    flag = f"--accept-setting={shell_word(dashed[0])}" if dashed else "--accept-setting"
    told = " ".join([flag, *map(str, words)])
    return f" ({told})" if len(told) <= LONGEST else ""


def _print_no_more(error: OSError) -> None:
    """Standard output takes nothing: from here on it leads nowhere, which the interpreter may flush, and the end tells why."""
    global _unwritten
    _unwritten = _unwritten or error
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_of_output() -> int:
    if _unwritten is None:
        return 0
    if isinstance(_unwritten, BrokenPipeError):
        return BROKEN_PIPE
    return _refuse(f"standard output takes no more: {_unwritten.strerror}", CANNOT_GO_ON)


def _refuse(message: str, status: int) -> int:
    _tell("error: " + printable(message))
    return status


def _tell(line: str) -> None:
    """One line on stderr; the status tells also those who do not listen."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr)
