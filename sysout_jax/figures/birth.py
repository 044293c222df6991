"""The birth (paper Figure 7): gate, up and x_down at one outlier token, the columns of W_down, and what they add to h."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sysout_jax.figures import style
from sysout_jax.figures.select import (
    TokenText,
    called,
    listed,
    number,
    percent,
    plural,
    subtitle,
    traced,
)
from sysout_jax.outliers.results import BirthEvent, Lifecycle
from sysout_jax.outliers.trace import Trace

MAX_BARS = 8  # channels in the bar panel
MAX_DIMS = 3
_DIM_LOOKS = ((style.BLUE, ""), (style.YELLOW, "//"), (style.PINK, "xx"))


def strongest_element(event: BirthEvent, path: Trace) -> tuple[int, int, int]:
    """Sequence, token and dim, as indices of the trace, of the largest |h| of the born elements."""
    size = np.nan_to_num(np.abs(path.h[event.layer]), posinf=0.0)
    size = np.where(
        path.targets.valid[..., None] & np.isin(path.targets.dims, event.dims), size, -1.0
    )
    e, m, p = np.unravel_index(np.argmax(size), size.shape)
    return int(e), int(m), int(p)


@style.styled
def birth(report: Lifecycle, token_text: TokenText) -> Figure:
    """How channels c* of one layer write the outlier into dims d*."""
    life, path = traced(report)
    event = life.birth.events[0]
    element = strongest_element(event, path)
    figure = style.new_figure(7.0, subtitle(report))
    left, right = figure.subfigures(1, 2, squeeze=False).ravel()
    sequence, position = _place(path, element)
    shown = style.label_text(token_text(sequence, position), 10)
    _channels(left, life, path, element)
    left.axes[0].set_title(f"layer {event.layer + 1}, token {position} “{shown}”", pad=20)
    upper, lower = right.subplots(2, 1, height_ratios=[5, 4])
    _contributions(upper, event, path, element)
    _before_and_after(lower, event, path, element)
    return figure


def _place(path: Trace, element: tuple[int, int, int]) -> tuple[int, int]:
    """Sequence and position of a followed element."""
    e, m, _ = element
    return int(path.targets.sequences[e]), int(path.targets.tokens[e, m])


def _channels(figure: SubFigure, life: Lifecycle, path: Trace, element) -> None:
    event = life.birth.events[0]
    e, m, _ = element
    channels = path.channels[event.layer]
    ratios = life.stats.weights.down_column_ratios[event.layer]
    born = np.array([c.index for c in event.channels], int)
    rows = [("up", channels.indices, channels.up[e, m])]
    if channels.gate is not None:
        rows.insert(0, ("gate", channels.indices, channels.gate[e, m]))
    rows.append(("x_down", channels.indices, channels.x_down[e, m]))
    rows.append(("W_down, extremal\nratio of column", np.arange(len(ratios)), ratios))
    panels = figure.subplots(len(rows), 1, sharex=True)
    for axes, (name, indices, values) in zip(panels, rows, strict=True):
        axes.vlines(indices, 0, values, color=style.GREY, lw=1, rasterized=len(indices) > 2000)
        at = np.isin(indices, born)
        axes.vlines(indices[at], 0, values[at], color=style.ORANGE, lw=2)
        axes.plot(
            indices[at],
            values[at],
            "o",
            color=style.ORANGE,
            mec=style.BLACK,
            label=f"c*: {listed(born)}",
            zorder=3,
        )
        axes.axhline(0, color=style.BLACK, lw=0.8)
        axes.set_ylabel(name)
        axes.margins(y=0.12)
        axes.locator_params(axis="y", nbins=4)
    style.legend_above(panels[0], 1)
    panels[-1].set_xlabel("channel of the MLP")
    panels[-1].set_xlim(-0.02 * len(ratios) - 0.5, 1.02 * len(ratios))
    figure.align_ylabels(panels)


def _contributions(axes: Axes, event: BirthEvent, path: Trace, element) -> None:
    e, m, p = element
    channels = path.channels[event.layer]
    added, value = channels.added[e, m, p], path.h[event.layer, e, m, p]
    order = np.argsort(-np.nan_to_num(np.abs(added)), kind="stable")[:MAX_BARS]
    born = {c.index for c in event.channels}
    for row, c in enumerate(order):
        special = int(channels.indices[c]) in born
        axes.barh(
            row,
            added[c],
            color=style.ORANGE if special else style.GREY,
            hatch="" if special else "//",
            edgecolor=style.BLACK,
            lw=0.8,
        )
        share = percent(added[c] / value) if value else "n/a"
        axes.annotate(
            share,
            (max(added[c], 0), row),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(order)), [str(channels.indices[c]) for c in order])
    axes.invert_yaxis()
    axes.axvline(0, color=style.BLACK, lw=0.8)
    axes.margins(x=0.24)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylabel("channel")
    axes.set_xlabel(f"added to dim {path.targets.dims[p]} (share of h)")
    axes.set_title("strongest channels")


def _before_and_after(axes: Axes, event: BirthEvent, path: Trace, element) -> None:
    e, m, strongest = element
    of_event = [
        p
        for p in np.argsort(-np.abs(path.h[event.layer, e, m]))
        if path.targets.dims[p] in event.dims
    ]
    dims = [strongest, *(p for p in of_event if p != strongest)][:MAX_DIMS]
    width = 0.8 / len(dims)
    for i, (p, (colour, hatch)) in enumerate(zip(dims, _DIM_LOOKS, strict=False)):
        values = [
            part[event.layer, e, m, p] for part in (path.x_in, path.attn_out, path.down, path.h)
        ]
        axes.bar(
            np.arange(4) + (i - (len(dims) - 1) / 2) * width,
            values,
            width,
            color=colour,
            hatch=hatch,
            edgecolor=style.BLACK,
            lw=0.8,
            label=f"dim {path.targets.dims[p]}",
        )
    axes.set_xticks(range(4), ["before", "attention", "MLP", "after"])
    axes.axhline(0, color=style.BLACK, lw=0.8)
    axes.set_ylabel("value")
    axes.margins(y=0.08)
    axes.set_title("h before, what is added, h after", pad=20)
    style.legend_above(axes, MAX_DIMS)


def birth_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Which channels explain the outlier, and how outstanding their columns are."""
    life, path = traced(report)
    event = life.birth.events[0]
    sequence, position = _place(path, strongest_element(event, path))
    dims = f"dim{'s' * (len(event.dims) > 1)} {listed(event.dims)}"
    start = f"In layer {event.layer + 1} the {called(report)} enters {dims} at {plural(len(event.tokens), 'token')}: "
    if not event.channels:
        return start + f"{percent(event.from_attention)} of it from attention, none from the MLP."
    first = event.channels[0]
    return (
        f"{start}{percent(event.from_mlp)} of it from the MLP, {percent(event.explained)} from "
        f"channel{'s' * (len(event.channels) > 1)} {listed(c.index for c in event.channels)}; the column of channel {first.index} "
        f"has extremal ratio {number(first.column_ratio)}, rank {first.column_rank + 1} of "
        f"{life.stats.weights.down_column_ratios.shape[1]:,} (drawn: token {position} of sequence {sequence})."
    )
