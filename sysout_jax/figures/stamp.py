"""What a figure was made from, in small print on it: a figure is passed on without its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from matplotlib.figure import Figure

from sysout_jax.figures.style import GREY, label_text, styled
from sysout_jax.words import joined, plural

ROOM = 0.16  # inches
MOST_MODELS = 3  # that are named


def origin(settings: Mapping[str, Any]) -> str:
    """`SmolLM2 · text.txt, 10 × 512 tokens · τ = 1000` from the settings of a report; nothing where they name no model."""
    models, flags = settings.get("models"), settings.get("flags", {})
    if not models:
        return ""
    parts = [_named(models), f"{_text(flags)}, {settings['sequences']:,} × {settings['length']:,} tokens"]  # fmt: skip
    if flags.get("tau") is not None:
        parts.append(f"τ = {flags['tau']:g}")
    return " · ".join(parts)


def _named(models: Sequence[str]) -> str:
    names = [label_text(PurePath(model).name or model, 40) for model in models[:MOST_MODELS]]
    if more := len(models) - len(names):
        names.append(plural(more, "other model"))
    return joined(names)


def _text(flags: Mapping[str, Any]) -> str:
    if flags.get("prompt") is not None:
        return f"prompt “{label_text(flags['prompt'], 24)}”"
    if flags.get("text") is not None:
        return label_text(PurePath(flags["text"]).name, 32)
    return "the package's text"


@styled
def stamp(figure: Figure, line: str) -> Figure:
    """The figure with `line` at its lower right edge, and higher by that line."""
    if line:
        figure.set_figheight(figure.get_figheight() + ROOM)
        figure.supxlabel(line, x=0.995, ha="right", fontsize=7, color=GREY)
    return figure
