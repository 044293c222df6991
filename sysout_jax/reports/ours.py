"""Which files of a directory a report may replace: those that a report of ours, of whatever version, has put there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name
from sysout_jax.reports.page import MARK

HEAD, TAIL = 1 << 18, 1 << 24  # bytes that are read of a page and of a JSON
DRAWINGS = (".png", ".pdf")
_OPENING = b"<!DOCTYPE html>"
_LAST_KEYS = re.compile(rb'\n  "figures": \[[^\]]*\],\n  "settings": \{')  # of every JSON of ours


def check_ours(out: Path, page: str, figures: str, results: str, beside: Sequence[str]) -> None:
    """InputError where a report in `out` would take the place of what is not ours; nothing is written.

    The `page` and the JSON `results` are known by what they hold. Figures and the files `beside` tell nothing: they are ours
    where one of the two lies with them.
    """
    ours = [_check(out, page, _is_page), _check(out, results, _is_results)]
    if not any(ours):
        for name in (*beside, *_drawn(out, figures)):
            _check(out, name, lambda path: False)


def _check(out: Path, name: str, is_ours: Callable[[Path], bool]) -> bool:
    """Whether it is there, and ours."""
    if not os.path.lexists(out / name):
        return False
    if is_ours(out / name):
        return True
    raise InputError(
        f"{out}: {printable_name(name)} in it is not from a report of ours and could be replaced; move it away, or name another "
        "directory"
    )


def _is_page(path: Path) -> bool:
    head = _part(path, 0, HEAD)
    return head.startswith(_OPENING) and MARK.encode() in head


def _is_results(path: Path) -> bool:
    tail = _part(path, -TAIL, TAIL)
    return tail.endswith(b"}\n}\n") and _LAST_KEYS.search(tail) is not None


def _part(path: Path, start: int, size: int) -> bytes:
    """Bytes of a regular file, from its end where `start` is negative; none of anything else, nor of what a link leads to."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return b""
        with open(path, "rb") as file:
            file.seek(start if start >= 0 else max(0, path.lstat().st_size + start))
            return file.read(size)
    except OSError:  # not even to be read
        return b""


def _drawn(out: Path, figures: str) -> list[str]:
    """A drawing among the figures, if there is one."""
    try:
        with os.scandir(out / figures) as entries:
            names = (entry.name for entry in entries if entry.name.endswith(DRAWINGS))
            return [f"{figures}/{name}" for name in names][:1]
    except OSError:  # no such directory
        return []
