"""What an analysis says of each of its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from matplotlib.figure import Figure

from sysout_jax.outliers.tokens import TokenText

R = TypeVar("R")


def _always(report: Any) -> bool:
    return True


@dataclass(frozen=True)
class FigureSpec(Generic[R]):
    """How to draw a figure of a report R, what it is called, one sentence that says what to see in it, and when it applies."""

    draw: Callable[[R, TokenText], Figure]
    title: str
    sentence: Callable[[R, TokenText], str]
    applies: Callable[[R], bool] = _always


def draw_figures(
    specs: Mapping[str, FigureSpec[R]], report: R, token_text: TokenText
) -> dict[str, Figure]:
    """All figures that apply to the report, by name; `token_text` gives the text of (sequence, position)."""
    return {
        name: spec.draw(report, token_text) for name, spec in specs.items() if spec.applies(report)
    }
