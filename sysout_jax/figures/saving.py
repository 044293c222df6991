"""Figures to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from sysout_jax.figures import drawing
from sysout_jax.figures.style import DPI, STYLE

SUFFIXES = ("png", "pdf")


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write `<folder>/<name>.png` and `.pdf` of every figure. Raises OSError when they cannot be written."""
    for name, figure in figures.items():
        drawing.draw(figure, folder / name, STYLE, DPI)
