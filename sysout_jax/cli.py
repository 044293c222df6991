"""How every command line ends: 0 done, 2 bad input, 1 a run that cannot go on; one line on stderr, no traceback for what is no bug."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from sysout_jax.errors import InputError, RunError

CANNOT_GO_ON = 1
BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output (`| head`) has had enough


def run(main: Callable[[], None]) -> NoReturn:
    """Call `main` and leave the process with the status that its outcome stands for.

    InputError becomes its one line on stderr and status 2, RunError the same with status 1; anything else that is raised is a bug and keeps its traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _deliver_every_interrupt()
    sys.exit(_status(main))


def _deliver_every_interrupt() -> None:
    """Raise a KeyboardInterrupt again, a moment later, where Python dropped it: what is raised in a callback of the garbage
    collector or of a weak reference, or in a `__del__`, goes to `sys.unraisablehook` alone, and jax has many of them."""
    report = sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            report(lost)

    sys.unraisablehook = unraisable
    signal.signal(signal.SIGALRM, signal.default_int_handler)


def _status(main: Callable[[], None]) -> int:
    try:
        main()
        sys.stdout.flush()  # a broken pipe must show here, where it is caught, not at exit
    except (InputError, RunError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return BAD_INPUT if isinstance(error, InputError) else CANNOT_GO_ON
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes stdout once more when it ends; give it somewhere to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0
