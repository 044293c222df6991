"""Warnings that users see once, however often their cause is met."""

from __future__ import annotations

import functools
import logging

from sysout_jax.printable import printable

log = logging.getLogger(__name__)


def warn(line: str) -> None:
    """Log a warning. It may name what comes from outside: a terminal shows it."""
    log.warning("%s", printable(line))


@functools.cache
def warn_once(line: str) -> None:
    """Log it, unless this process has logged the same one."""
    warn(line)
