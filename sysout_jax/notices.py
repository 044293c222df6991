"""Warnings that users see once, however often their cause is met."""

from __future__ import annotations

import functools
import logging

from sysout_jax.printable import printable

log = logging.getLogger(__name__)


@functools.cache
def warn_once(line: str) -> None:
    """Log a warning, unless this process has logged the same one. It may name what comes from outside: a terminal shows it."""
    log.warning("%s", printable(line))
