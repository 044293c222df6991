"""Where outliers live (paper Figure 2): a transformer layer on the left, its places over all layers on the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.figures import style
from sysout_jax.figures.select import outlier_layers
from sysout_jax.outliers.definitions import SINK_SHARE, even_attention_passes
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import joined, layer_ranges, named, number, plural

MOST_BIRTHS = 2  # whose channels are named
_FOUND, _EMPTY = style.BLUE, "#ececec"


@dataclass(frozen=True)
class Row:
    """One row of the grid: the place it belongs to, the layers to fill, and what to say about it."""

    place: str
    layers: np.ndarray
    note: str
    carriers: tuple[int, ...] = ()  # layers in which a birth passes through it


def rows(report: Lifecycle) -> tuple[Row, ...]:
    """The places of a layer, from its output down to its attention."""
    stats, birth = report.stats, report.birth
    row_ratio = stats.weights.row_ratio[:, stats.weights.modules.index("down")]
    flagged = stats.attention.code_outlier_tokens.any(axis=(1, 2))
    carriers = tuple(event.layer for event in birth.events if event.channels)

    def carried(word: str, ratio: float) -> str:
        """The channels of every birth that is starred, with their layers where there are several births."""
        births = [event for event in birth.events if event.channels]
        if not births:
            return f"largest ratio {number(ratio)}"
        if len(births) == 1:
            return f"☆ {named(word, [channel.label for channel in births[0].channels], 2)}"
        lines = [
            f"☆ {named(word, [channel.label for channel in event.channels], 2)} (layer {event.layer + 1})"
            for event in births[:MOST_BIRTHS]
        ]
        if more := len(births) - MOST_BIRTHS:
            lines[-1] += f", {plural(more, 'birth')} more" if more > 0 else ""
        return "\n".join(lines)

    dims = (
        named("dim", birth.dims, 2)
        if birth.dims
        else f"largest ratio {number(report.largest_h.ratio)}"
    )

    return (
        Row("h", outlier_layers(report, "h"), dims),
        Row(
            "W_down",
            np.flatnonzero(row_ratio > report.tau),
            carried("column", row_ratio.max()),
            carriers,
        ),
        Row(
            "x_down",
            outlier_layers(report, "x_down"),
            carried("channel", report.largest_x_down.ratio),
            carriers,
        ),
        Row(
            "attention",
            np.unique([head.layer for head in report.spread.heads]).astype(int),
            plural(len(report.spread.heads), "sink head"),
        ),
        Row(
            "attention",
            np.flatnonzero(stats.attention.outlier_keys.any(axis=1)),
            "key sum > τ · mean",
        ),
        Row("attention", np.flatnonzero(flagged), "key sum ≥ T / 10"),
    )


@style.styled
def where(report: Lifecycle, token_text: TokenText) -> Figure:
    """Layers × places, filled where an outlier was found."""
    places = rows(report)
    figure = style.new_figure(4.4)
    sketch, grid = figure.subplots(1, 2, sharey=True, width_ratios=[1.5, 6])
    _sketch(sketch, places)
    _grid(grid, report, places)
    return figure


def _grid(axes: Axes, report: Lifecycle, places: tuple[Row, ...]) -> None:
    L = report.num_layers
    gap = 0.92 if L <= 40 else 1.0
    for y, row in enumerate(reversed(places)):
        for layer in range(L):
            colour = _FOUND if layer in row.layers else _EMPTY
            corner = (layer + 1 - gap / 2, y - 0.36)
            axes.add_patch(Rectangle(corner, gap, 0.72, color=colour, lw=0))
        x = [layer + 1 for layer in row.carriers]
        axes.scatter(x, [y] * len(x), **_STAR, zorder=3)
        axes.annotate(
            row.note,
            (1.015, y),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    style.layer_axis(axes, L)
    axes.set_ylim(-0.6, len(places) - 0.4)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.scatter([], [], marker="s", s=70, color=_FOUND, label=f"found (τ = {report.tau:g})")
    axes.scatter([], [], marker="s", s=70, color=_EMPTY, label="none")
    if any(row.carriers for row in places):
        axes.scatter([], [], **_STAR, label="carries a birth")
    style.legend_above(axes, 3, handletextpad=0.2)


_STAR: Any = {"marker": "*", "s": 110, "color": "white", "edgecolors": "black", "linewidths": 1}


def _sketch(axes: Axes, places: tuple[Row, ...]) -> None:
    """One layer, read upwards along the residual stream; each box stands beside its rows of the grid."""
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.plot([0.7, 0.7], [-0.55, 5], color=style.BLACK, lw=1.4)
    heights: dict[str, list[int]] = {}
    for y, row in enumerate(reversed(places)):
        heights.setdefault(row.place, []).append(y)
    for place, ys in heights.items():
        filled = any(len(row.layers) for row in places if row.place == place)
        axes.add_patch(
            FancyBboxPatch(
                (3, ys[0] - 0.3),
                7,
                ys[-1] - ys[0] + 0.6,
                boxstyle="round,pad=0,rounding_size=0.5",
                mutation_aspect=0.15,
                fc=_FOUND if filled else "white",
                ec=style.BLACK,
                lw=1,
                clip_on=False,
            )
        )
        colour = "white" if filled else style.BLACK
        axes.text(6.5, float(np.mean(ys)), place, ha="center", va="center", color=colour)
    arrow = {"arrowstyle": "-|>", "color": style.BLACK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    # residual stream → attention → back; → x_down → W_down → back; → h
    for start, end in (
        ((0.7, 0), (3, 0)),
        ((3, 2), (0.7, 2)),
        ((0.7, 3), (3, 3)),
        ((6.5, 3.3), (6.5, 3.7)),
        ((3, 4), (0.7, 4)),
        ((0.7, 5), (3, 5)),
    ):
        axes.annotate("", end, start, arrowprops=arrow)


def where_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Which places hold outliers, and in which layers; and where the last row is arithmetic."""
    if not (len(rows(report)[-1].layers) and even_attention_passes(report.length)):
        return _where(report)
    length = plural(report.length, "token")
    return f"{_where(report)} With {length} even attention gives the first key T / 10 too: the last row says nothing."


def _where(report: Lifecycle) -> str:
    places = {row.place: row for row in rows(report)[:3]}
    some = [
        f"{name} (layer{'s' * (len(row.layers) > 1)} {layer_ranges(row.layers)})"
        for name, row in places.items()
        if len(row.layers)
    ]
    none = [name for name, row in places.items() if not len(row.layers)]
    if not some:
        return (
            f"No activation and no row of W_down reaches τ = {report.tau:g}; the largest ratios are "
            f"{number(report.largest_h.ratio)} in h (layer {report.largest_h.layer + 1}) and "
            f"{number(report.largest_x_down.ratio)} in x_down (layer {report.largest_x_down.layer + 1})."
        )
    sentence = f"Outliers at τ = {report.tau:g} are in {joined(some)}" + (
        f", not in {joined(none)}" if none else ""
    )
    if not report.birth.events:
        return f"{sentence}."
    count = len(report.spread.heads)
    return (
        f"{sentence}; they are born in layer{'s' * (len(report.birth.layers) > 1)} {layer_ranges(report.birth.layers)}, "
        f"and {plural(count, 'later head')} give{'s' * (count == 1)} their tokens more than {SINK_SHARE:.0%} of the attention."
    )
