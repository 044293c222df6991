"""What Orbax and TensorStore print of an error besides raising it: users get the one line that is made of what is raised."""

from __future__ import annotations

import functools
import logging
import sys

# The groups of a training checkpoint are items of one checkpoint, which alone has such a file; Orbax warns once per group.
# What it cannot read of an item's description, `checkpoint.OrbaxSource` tells.
_SAID_BETTER = ("Metadata file does not exist", "Failed to get item metadata")


@functools.cache
def quiet_orbax() -> None:
    """From now on, the threads of both libraries leave no tracebacks in the log or on stderr."""
    logging.getLogger("absl").addFilter(_is_news)
    logging.getLogger("asyncio").addFilter(_is_no_rest)
    report = sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        # a write that ends after the one beside it has failed calls into an event loop that is gone
        late = isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == (
            "Event loop is closed"
        )
        if not late:
            report(lost)

    sys.unraisablehook = unraisable


def _is_news(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    return not record.exc_info and not record.getMessage().startswith(_SAID_BETTER)


def _is_no_rest(record: logging.LogRecord) -> bool:
    """False for a task of Orbax that was left over, or whose error nobody asked for, after the write beside it had failed."""
    message = record.getMessage()
    left = ("Task ", "Future ", "_GatheringFuture ")
    return not (message.startswith(left) and ("/orbax/" in message or "/tensorstore/" in message))
