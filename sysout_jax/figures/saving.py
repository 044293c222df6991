"""Figures to files, two at a time: in this process and in one beside it, for drawing is all Python and takes one core."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from sysout_jax import interrupts
from sysout_jax.figures import drawing
from sysout_jax.figures.style import DPI, STYLE

SUFFIXES = ("png", "pdf")
FEW = 3  # figures for which a second process is not worth its start


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write `<folder>/<name>.png` and `.pdf` of every figure. Raises OSError when they cannot be written."""
    waiting = deque(figures.items())
    with _helper(waiting, folder) as unfinished:
        while waiting:
            with contextlib.suppress(IndexError):  # the helper was quicker
                _draw(*waiting.popleft(), folder)
    for name, figure in unfinished:
        _draw(name, figure, folder)


def _draw(name: str, figure: Figure, folder: Path) -> None:
    drawing.draw(figure, folder / name, STYLE, DPI)


@contextlib.contextmanager
def _helper(waiting: deque[tuple[str, Figure]], folder: Path) -> Iterator[list]:
    """Within, a second process takes figures from the end of `waiting`; the list that is given holds what it failed to draw.

    Whatever befalls it, nothing is lost: this process draws what is left and meets the same error, if it is one of the figure.
    """
    unfinished: list[tuple[str, Figure]] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if len(waiting) <= FEW or (cores or 1) < 2:
        yield unfinished
        return
    try:
        # -P: the modules beside the script are not those of the standard library that are called alike
        process = subprocess.Popen(
            [sys.executable, "-P", drawing.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is this process's to answer
        )
    except OSError:
        yield unfinished
        return
    feeder = threading.Thread(target=_feed, args=(process, waiting, unfinished, folder))
    with process, interrupts.cleaning_up(process.kill):
        try:
            feeder.start()
            yield unfinished
            feeder.join()
        finally:
            process.kill()


def _feed(process: subprocess.Popen, waiting: deque, unfinished: list, folder: Path) -> None:
    assert process.stdin and process.stdout
    while waiting:
        try:
            name, figure = waiting.pop()
        except IndexError:
            return
        try:
            request = pickle.dumps((figure, folder / name, dict(STYLE), DPI))
            process.stdin.write(request)
            process.stdin.flush()
            done = process.stdout.read(1) == b"."
        except Exception:  # it is gone, or the figure holds what cannot be sent
            done = False
        if not done:
            unfinished.append((name, figure))
            process.kill()
            return
