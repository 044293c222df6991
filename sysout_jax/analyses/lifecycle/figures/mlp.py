"""One MLP closely (paper Figures 7 and 9): signed gate, up and x_down at one token, the columns of W_down, what they add to h."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sysout_jax.analyses.lifecycle.figures.followed import subtitle
from sysout_jax.analyses.lifecycle.results import BirthEvent, Lifecycle, Opposition
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.figures import style
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import named, percent

MAX_BARS = 8  # channels in the bar panel
MAX_DIMS = 3
_DIM_LOOKS = ((style.BLUE, ""), (style.YELLOW, "//"), (style.PINK, "xx"))


@dataclass(frozen=True)
class CloseUp:
    """What to draw: an event of the lifecycle at one followed element."""

    life: Lifecycle
    trace: Trace
    event: BirthEvent | Opposition
    element: tuple[int, int, int]  # sequence, token and dim, as indices of the trace
    of: str  # what the channels' shares are relative to: "h" after the layer, or what "enters" it

    @property
    def place(self) -> tuple[int, int]:
        """Sequence and position of the element."""
        e, m, _ = self.element
        targets = self.trace.targets
        return int(targets.sequences[e]), int(targets.tokens[e, m])


def strongest_element(
    trace: Trace, values_ExMxP: np.ndarray, dims: tuple[int, ...]
) -> tuple[int, int, int]:
    """Indices of the largest magnitude among the followed tokens and the chosen dims."""
    size = finite_or(np.abs(values_ExMxP))
    size = np.where(trace.targets.valid[..., None] & np.isin(trace.targets.dims, dims), size, -1.0)
    e, m, p = np.unravel_index(np.argmax(size), size.shape)
    return int(e), int(m), int(p)


def draw_close_up(report: Lifecycle, shown: CloseUp, token_text: TokenText) -> Figure:
    """Channels on the left, what they add and the residual stream around it on the right."""
    figure = style.new_figure(7.0, subtitle(report))
    left, right = figure.subfigures(1, 2, squeeze=False).ravel()
    _channels(left, shown)
    text = style.label_text(token_text(*shown.place), 10)
    title = f"layer {shown.event.layer + 1}, token {shown.place[1]} “{text}”"
    left.axes[0].set_title(title, pad=20)
    upper, lower = right.subplots(2, 1, height_ratios=[5, 4])
    _contributions(upper, shown)
    _before_and_after(lower, shown)
    return figure


def _channels(figure: SubFigure, shown: CloseUp) -> None:
    event, (e, m, _) = shown.event, shown.element
    channels = shown.trace.channels[event.layer]
    ratios = shown.life.stats.weights.down_column_ratios[event.layer]
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
            label=named("channel", (c.label for c in event.channels)),
            zorder=3,
        )
        axes.axhline(0, color=style.BLACK, lw=0.8)
        axes.set_ylabel(name)
        axes.margins(y=0.12)
        axes.locator_params(axis="y", nbins=4)
        style.thousands(axes)
    style.legend_above(panels[0], 1)
    panels[-1].set_xlabel("channel of the MLP")
    panels[-1].set_xlim(-0.02 * len(ratios) - 0.5, 1.02 * len(ratios))
    figure.align_ylabels(panels)


def _contributions(axes: Axes, shown: CloseUp) -> None:
    event, trace, (e, m, p) = shown.event, shown.trace, shown.element
    channels = trace.channels[event.layer]
    whole = trace.h if shown.of == "h" else trace.x_in
    added, value = channels.added[e, m, p], whole[event.layer, e, m, p]
    order = np.argsort(-finite_or(np.abs(added)), kind="stable")[:MAX_BARS]
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
    axes.set_yticks(
        range(len(order)), [shown.life.stats.x_down.label(channels.indices[c]) for c in order]
    )
    axes.invert_yaxis()
    axes.axvline(0, color=style.BLACK, lw=0.8, zorder=3)
    axes.margins(x=0.24)
    axes.locator_params(axis="x", nbins=5)
    style.thousands(axes, "x")
    axes.set_ylabel("channel")
    axes.set_xlabel(f"added to dim {trace.targets.dims[p]} (share of {shown.of})")
    axes.set_title("strongest channels")


def _before_and_after(axes: Axes, shown: CloseUp) -> None:
    event, trace, (e, m, strongest) = shown.event, shown.trace, shown.element
    whole = trace.h if shown.of == "h" else trace.x_in
    of_event = [
        p
        for p in np.argsort(-np.abs(whole[event.layer, e, m]))
        if trace.targets.dims[p] in event.dims
    ]
    dims = [strongest, *(p for p in of_event if p != strongest)][:MAX_DIMS]
    width = 0.8 / len(dims)
    for i, (p, (colour, hatch)) in enumerate(zip(dims, _DIM_LOOKS, strict=False)):
        values = [
            part[event.layer, e, m, p] for part in (trace.x_in, trace.attn_out, trace.down, trace.h)
        ]
        axes.bar(
            np.arange(4) + (i - (len(dims) - 1) / 2) * width,
            values,
            width,
            color=colour,
            hatch=hatch,
            edgecolor=style.BLACK,
            lw=0.8,
            label=f"dim {trace.targets.dims[p]}",
        )
    axes.set_xticks(range(4), ["before", "attention", "MLP", "after"])
    axes.axhline(0, color=style.BLACK, lw=0.8)
    axes.set_ylabel("value")
    style.thousands(axes)
    axes.margins(y=0.08)
    axes.set_title("h before, what is added, h after", pad=20)
    style.legend_above(axes, MAX_DIMS)
