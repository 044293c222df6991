"""The birth (paper Figure 7): the MLP that writes the outlier, closely."""

from __future__ import annotations

from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.followed import called, traced
from sysout_jax.analyses.lifecycle.figures.mlp import CloseUp, draw_close_up, strongest_element
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.figures import style
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import listed, number, percent, plural


def _shown(report: Lifecycle) -> CloseUp:
    """The first birth at the strongest element that it makes."""
    life, trace = traced(report)
    event = life.birth.events[0]
    element = strongest_element(trace, trace.h[event.layer], event.dims)
    return CloseUp(life, trace, event, element, of="h")


@style.styled
def birth(report: Lifecycle, token_text: TokenText) -> Figure:
    """How channels c* of one layer write the outlier into dims d*."""
    return draw_close_up(report, _shown(report), token_text)


def birth_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Which channels explain the outlier, and how outstanding their columns are."""
    shown = _shown(report)
    life, event = shown.life, shown.life.birth.events[0]
    sequence, position = shown.place
    dims = f"dim{'s' * (len(event.dims) > 1)} {listed(event.dims)}"
    start = f"In layer {event.layer + 1} the {called(report)} enters {dims} at {plural(len(event.tokens), 'token')}: "
    if not event.channels:
        return start + f"{percent(event.from_attention)} of it from attention, none from the MLP."
    first = event.channels[0]
    return (
        f"{start}{percent(event.from_mlp)} of it from the MLP, {percent(event.explained)} from "
        f"channel{'s' * (len(event.channels) > 1)} {listed(c.label for c in event.channels)}; the column of channel {first.label} "
        f"has extremal ratio {number(first.column_ratio)}, rank {first.column_rank + 1} of "
        f"{life.stats.weights.down_column_ratios.shape[1]:,} (drawn: token {position} of sequence {sequence})."
    )
