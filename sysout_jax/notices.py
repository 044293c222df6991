"""Warnings that users see once, however often their cause is met."""

from __future__ import annotations

import functools
import logging

log = logging.getLogger(__name__)


@functools.cache
def warn_once(line: str) -> None:
    """Log a warning, unless this process has logged the same one."""
    log.warning("%s", line)
