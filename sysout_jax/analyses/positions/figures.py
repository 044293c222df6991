"""Which channels, matrices, keys and heads (paper Figures 3c, 4b–c, 5b–c, 6a and 6c)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.layers import (
    activations,
    head_shares,
    weights,
    weights_sentence,
)
from sysout_jax.analyses.positions.measure import Matrix, Place, Positions, strongest
from sysout_jax.analyses.positions.token_classes import tokens, tokens_sentence
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.definitions import CODE_SHARE, even_attention_passes
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import in_layers, joined, listed, named, number, percent, plural

MAX_NAMED = 3  # channels named in a panel
_UNIT = {"h": "dim", "x_down": "channel"}


def _places(report: Positions) -> dict[str, Place]:
    return {"h": report.h, "x_down": report.x_down}


def _remark(report: Positions) -> str:
    """Says so where what is drawn are no outliers."""
    calm = [name for name, place in _places(report).items() if not place.found]
    if not calm:
        return ""
    return f"no outlier at τ = {report.tau:g} in {joined(calm)}: strongest candidates, shown for orientation"


def activations_sentence(report: Positions, token_text: TokenText) -> str:
    """In which layers, and how large."""
    parts = []
    for name, place in _places(report).items():
        ratio = getattr(report.stats, name).ratio
        peak = f"the largest ratio is {number(ratio.max())} (layer {int(ratio.argmax()) + 1})"
        where = in_layers(place.layers) if place.found else f"nowhere at τ = {report.tau:g}"
        parts.append(f"{name} has outliers {where}, {peak}")
    return "; ".join(parts) + "."


@style.styled
def channels(report: Positions, token_text: TokenText) -> Figure:
    """Every outlier channel of every layer as a point; the larger, the further over the threshold."""
    figure = style.new_figure(6.6, _remark(report))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (name, place) in zip(panels, _places(report).items(), strict=True):
        ratio_LxC = getattr(report.stats, name).channel_ratio
        layers, columns = np.nonzero(place.channels)
        size = 14 + 30 * np.log10(np.maximum(ratio_LxC[layers, columns] / place.level, 1.0))
        axes.scatter(
            layers + 1, columns, s=size, color=style.BLUE, edgecolors=style.BLACK, lw=0.6, zorder=3
        )
        C = ratio_LxC.shape[1]
        axes.set_ylim(-0.04 * C, 1.04 * C)
        axes.set_ylabel(f"{_UNIT[name]} (of {C:,})")
        axes.grid(axis="y")
        known = _everywhere(place, ratio_LxC)
        axes.set_title(f"{name}: {named(_UNIT[name], known, 6)}" if known else name)
        style.layer_axis(axes, report.num_layers, label=axes is panels[1])
    return figure


def _everywhere(place: Place, ratio_LxC: np.ndarray) -> list[int]:
    """Outlier channels of any layer, those of most layers first."""
    count, most = place.channels.sum(axis=0), np.where(place.channels, ratio_LxC, 0).max(axis=0)
    marked = np.flatnonzero(count)
    return [int(c) for c in marked[np.lexsort((-most[marked], -count[marked]))]]


def channels_sentence(report: Positions, token_text: TokenText) -> str:
    """How few channels hold all outliers."""
    parts = []
    for name, place in _places(report).items():
        ratio_LxC = getattr(report.stats, name).channel_ratio
        known = _everywhere(place, ratio_LxC)
        what = "outliers" if place.found else f"elements over {number(place.level)} times the mean"
        parts.append(
            f"{what} of {name} sit in {len(known):,} of {plural(ratio_LxC.shape[1], _UNIT[name])} "
            f"({listed(map(getattr(report.stats, name).label, known), 6) or 'none'})"
        )
    return f"Over all layers, {joined(parts)}. The larger a mark, the further it is over the threshold."


@style.styled
def close_ups(report: Positions, token_text: TokenText) -> Figure:
    """Largest ratio of every channel in the shallowest and the deepest layer with outliers."""
    shown = [
        (name, place, layer) for name, place in _places(report).items() for layer in place.close_ups
    ]
    rows = (len(shown) + 1) // 2
    figure = style.new_figure(0.6 + 2.6 * rows, _remark(report))
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, (name, place, layer) in zip(panels, shown, strict=False):
        ratio_C = getattr(report.stats, name).channel_ratio[layer]
        marked = strongest(ratio_C, place.channels[layer], len(ratio_C))
        _stems(axes, ratio_C, marked, list(map(getattr(report.stats, name).label, marked)))
        axes.axhline(place.level, color=style.GREEN, ls="--", lw=1.2)
        axes.set_ylim(0, 1.3 * max(ratio_C.max(), place.level))
        axes.set_title(f"{name}, layer {layer + 1}")
        axes.set_xlabel(f"{_UNIT[name]}")
        axes.set_ylabel("largest |x| / mean|x|")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return figure


def _stems(axes: Axes, values_C: np.ndarray, marked: np.ndarray, labels: list[str]) -> None:
    """All channels as thin lines, marked ones on top, the first few with what they are called."""
    axes.vlines(
        np.arange(len(values_C)),
        0,
        values_C,
        color=style.GREY,
        lw=0.8,
        rasterized=len(values_C) > 2000,
    )
    axes.plot(marked, values_C[marked], "o", color=style.ORANGE, mec=style.BLACK, zorder=3)
    axes.vlines(marked, 0, values_C[marked], color=style.ORANGE, lw=1.6)
    axes.set_xlim(-0.02 * len(values_C) - 0.5, 1.02 * len(values_C))
    axes.locator_params(axis="both", nbins=5)
    style.thousands(axes)
    taken: list[float] = []
    for c, label in list(zip(marked, labels, strict=True))[:MAX_NAMED]:
        # a name that would touch another one is left to the table
        if all(abs(c - other) > 0.16 * len(values_C) for other in taken):
            taken.append(float(c))
            side = "right" if c > 0.85 * len(values_C) else "left" if c < 0.15 * len(values_C) else "center"  # fmt: skip
            axes.annotate(
                label,
                (c, values_C[c]),
                (0, 5),
                textcoords="offset points",
                ha=side,
                fontsize=9,
                fontweight="bold",
            )


def close_ups_sentence(report: Positions, token_text: TokenText) -> str:
    """The channels of the layers drawn."""
    parts = []
    for name, place in _places(report).items():
        for layer in place.close_ups:
            ratio_C = getattr(report.stats, name).channel_ratio[layer]
            marked, label = (
                strongest(ratio_C, place.channels[layer], 4),
                getattr(report.stats, name).label,
            )
            parts.append(
                f"layer {layer + 1} of {name}: "
                + joined([f"{label(c)} ({number(ratio_C[c])})" for c in marked])
            )
    return f"The channels that reach the dashed threshold, with their largest ratio; {'; '.join(parts)}."


@style.styled
def matrices(report: Positions, token_text: TokenText) -> Figure:
    """Extremal ratio of every column of the three most extreme matrices."""
    figure = style.new_figure(2.2 * len(report.matrices) + 0.4)
    panels = figure.subplots(len(report.matrices), 1, squeeze=False).ravel()
    for axes, matrix in zip(panels, report.matrices, strict=True):
        ratio_I = report.stats.weights.column_ratios[matrix.module][matrix.layer]
        marked = _marked(report, matrix)
        label = report.stats.x_down.label if matrix.module == "down" else str
        _stems(axes, ratio_I, marked, [label(column) for column in marked])
        axes.set_ylim(0, 1.25 * max(ratio_I.max(), 1e-12))
        if not ratio_I.any():
            style.nothing_to_draw(axes)
        axes.set_title(f"layer {matrix.layer + 1}, {matrix.module}")
        axes.set_ylabel("extremal ratio")
    panels[-1].set_xlabel("column (input channel of the matrix)")
    return figure


def _marked(report: Positions, matrix: Matrix) -> np.ndarray:
    """The most extreme column; in W_down also those that x_down's outliers of the layer pass through, a birth's among them."""
    if matrix.module != "down":
        return np.array([matrix.column])
    carriers = report.x_down.channels[matrix.layer]
    ratio_I = report.stats.weights.column_ratios["down"][matrix.layer]
    others = [c for c in strongest(ratio_I, carriers, MAX_NAMED) if c != matrix.column]
    return np.array([matrix.column, *others])


def matrices_sentence(report: Positions, token_text: TokenText) -> str:
    """The outstanding columns."""
    parts = [
        f"column {m.label} of {m.module} in layer {m.layer + 1} ({number(m.ratio)})"
        for m in report.matrices
    ]
    return (
        f"The most extreme columns: {joined(parts)}; a single line that stands out is a weight outlier, a forest is none. In "
        "W_down the columns that outliers of x_down pass through are marked too."
    )


@style.styled
def keys(report: Positions, token_text: TokenText) -> Figure:
    """The two largest column sums and the median, mean over heads and sequences, in shares of T."""
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    x, every = style.layers_from_one(report.num_layers), style.mark_every(report.num_layers)
    T = report.length
    style.mark_layers(axes, report.keys.layers if report.keys.rule != "candidate" else ())
    for values, colour, line, marker, name in (
        (report.keys.top[:, 0], style.BLACK, "-", "o", "largest"),
        (report.keys.top[:, 1], style.BLUE, "--", "s", "second"),
        (report.keys.median, style.GREY, ":", "x", "median"),
    ):
        axes.plot(x, values / T, color=colour, ls=line, marker=marker, markevery=every, label=name)
    axes.axhline(CODE_SHARE, color=style.GREEN, lw=1, label="code's rule, T / 10")
    if report.keys.rule != "candidate":
        axes.fill_between([], [], color=style.BAND, label="flagged in some sequence")
    axes.set_ylim(0, max(1.08 * report.keys.top.max() / T, 0.12))
    if not report.keys.top.any():
        style.nothing_to_draw(axes)
    axes.set_ylabel("column sum / T\n(mean over heads, sequences)")
    axes.grid(axis="y")
    style.layer_axis(axes, report.num_layers)
    style.legend_above(axes, 5)
    return figure


def keys_sentence(report: Positions, token_text: TokenText) -> str:
    """Where attention gathers, and which rule flags it."""
    keys, T = report.keys, report.length
    layer = int(keys.top[:, 0].argmax())
    start = (
        f"In layer {layer + 1} the largest key of a sequence gets {percent(keys.top[layer, 0] / T)} of all attention, the second "
        f"{percent(keys.top[layer, 1] / T)}, the median {percent(keys.median[layer] / T)}; "
    )
    most = number(report.stats.attention.ratio.max())
    if keys.rule == "paper":
        return f"{start}some head exceeds τ = {report.tau:g} {in_layers(keys.layers)} (largest ratio {most})."
    limit = (
        f" (with {T:,} tokens a column sum is at most {T:,} times the mean)"
        if report.tau >= T
        else ""
    )
    start += f"no head's column sum exceeds τ = {report.tau:g} times its mean{limit}, the largest ratio is {most}"
    if keys.rule == "code":
        rule = f"{start}; the published code's rule flags keys {in_layers(keys.layers)}"
        return (
            f"{rule}, as it would under even attention in so short a text."
            if even_attention_passes(T)
            else f"{rule}."
        )
    return f"{start}, and no head mean reaches T / 10."


@style.styled
def heads(report: Positions, token_text: TokenText) -> Figure:
    """Attention on the outlier tokens of h, head by head, and its range over the heads of a layer."""
    what = "outlier tokens of h" if report.h.found else "the candidates' tokens"
    births = np.flatnonzero(report.h.tokens.born)
    birth = int(births[0]) if len(births) else None
    return head_shares(finite_or(report.keys.share), what, birth, finite_or(report.keys.even))


def heads_sentence(report: Positions, token_text: TokenText) -> str:
    """Range over heads in the layer of most attention."""
    share = finite_or(report.keys.share)
    layer = int(share.mean(axis=1).argmax())
    row = share[layer]
    what = "outlier" if report.h.found else "candidate"
    return (
        f"The {what} tokens of h get most attention in layer {layer + 1}: {percent(row.mean())} on average over heads, from "
        f"{percent(row.min())} (head {row.argmin()}) to {percent(row.max())} (head {row.argmax()}); over all layers the heads "
        f"range from {percent(share.min())} to {percent(share.max())}. In that layer even attention would give them "
        f"{percent(report.keys.even[layer], 1)}."
    )


def _has_places(report: Positions) -> bool:
    return bool(report.h.layers or report.x_down.layers)


#: Every figure of the analysis, in the paper's order.
POSITIONS: dict[str, FigureSpec[Positions]] = {
    "activations": FigureSpec(activations, "Which layers: activations", activations_sentence),
    "tokens": FigureSpec(tokens, "Which tokens", tokens_sentence, _has_places),
    "channels": FigureSpec(channels, "Which channels", channels_sentence, _has_places),
    "close-ups": FigureSpec(close_ups, "Layers close up", close_ups_sentence, _has_places),
    "weights": FigureSpec(weights, "Which matrices", weights_sentence),
    "matrices": FigureSpec(matrices, "Matrices close up", matrices_sentence),
    "keys": FigureSpec(keys, "Which layers: attention", keys_sentence),
    "heads": FigureSpec(heads, "Which heads", heads_sentence, _has_places),
}
