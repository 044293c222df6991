"""The death (paper Figure 9): h[d*] along the layers, and what attention and MLP add to it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.followed import (
    called,
    element_mean,
    followed,
    holders,
    subtitle,
    traced,
)
from sysout_jax.analyses.lifecycle.figures.mlp import CloseUp, draw_close_up, strongest_element
from sysout_jax.analyses.lifecycle.results import Lifecycle, Opposition
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.figures import style
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import layer_ranges, listed, number, percent

MAX_DIMS = 3
MAX_ROWS = 5  # oppositions in the table
_PART = {"attention": "attention", "mlp": "MLP"}
_LOOKS = ((style.BLACK, "-", "o"), (style.BLUE, "--", "s"), (style.ORANGE, "-.", "^"))


@style.styled
def death(report: Lifecycle, token_text: TokenText) -> Figure:
    """The residual stream at the tokens where a dim is an outlier, layer by layer, and the layers that push against it."""
    life, trace = traced(report)
    L = report.num_layers
    oppositions = strongest_oppositions(life)
    figure = style.new_figure(5.6 + 0.26 * max(len(oppositions), 1), subtitle(report))
    upper, lower, table = figure.subplots(
        3, 1, height_ratios=[5, 5, 0.6 + 0.55 * max(len(oppositions), 1)]
    )
    dims = strongest_dims(life, trace)
    x, every = style.layers_from_one(L), style.mark_every(L)
    for axes in (upper, lower):
        style.mark_layers(axes, sorted({o.layer for o in life.death.oppositions}))
        axes.axhline(0, color=style.BLACK, lw=0.8)
    for p, (colour, line, marker) in zip(dims, _LOOKS, strict=False):
        tokens = holders(life, trace, p)
        upper.plot(
            x,
            [element_mean(h[..., p], tokens) for h in trace.h],
            color=colour,
            ls=line,
            marker=marker,
            markevery=every,
            mfc="white",
            label=f"dim {trace.targets.dims[p]}",
        )
    upper.set_ylabel(f"h, mean over the\ndim's {called(report)} tokens")
    _added(lower, trace, dims[0], holders(life, trace, dims[0]), L)
    if life.death.oppositions:
        upper.fill_between([], [], color=style.BAND, label=f"takes {called(report)}s back")
    for axes in (upper, lower):
        style.legend_above(axes, MAX_DIMS + 1)
        axes.grid(axis="y")
        style.thousands(axes)
        style.layer_axis(axes, L, label=axes is lower)
    _table(table, oppositions, len(life.death.oppositions))
    return figure


def strongest_dims(life: Lifecycle, trace: Trace) -> list[int]:
    """Followed dims by their largest magnitude in any layer; those that the strongest opposition removes come first."""
    size = finite_or(np.abs(trace.h)).max(axis=(0, 1, 2))
    if life.death.oppositions:
        removed = max(life.death.oppositions, key=lambda o: o.removed).dims
        size = size + np.where(np.isin(trace.targets.dims, removed), size.max(), 0)
    return [int(p) for p in np.argsort(-size, kind="stable")[:MAX_DIMS]]


def strongest_oppositions(life: Lifecycle) -> list[Opposition]:
    """The parts that remove most, in the order of layers."""
    strongest = sorted(life.death.oppositions, key=lambda o: -o.removed)[:MAX_ROWS]
    return sorted(strongest, key=lambda o: (o.layer, o.part != "attention"))


def _added(axes: Axes, trace: Trace, p: int, tokens: np.ndarray, num_layers: int) -> None:
    x = style.layers_from_one(num_layers)
    for offset, part, colour, hatch, name in (
        (-0.2, trace.attn_out, style.SKY, "//", "attention adds"),
        (0.2, trace.down, style.BLUE, "", "MLP adds"),
    ):
        axes.bar(
            x + offset,
            [element_mean(values[..., p], tokens) for values in part],
            0.4,
            color=colour,
            hatch=hatch if num_layers <= 40 else "",
            edgecolor=style.BLACK,
            lw=0.5 if num_layers <= 40 else 0.2,
            label=f"{name} to dim {trace.targets.dims[p]}",
        )
    axes.set_ylabel("added by the layer")


def _table(axes: Axes, oppositions: list[Opposition], count: int) -> None:
    axes.set_axis_off()
    if not oppositions:
        axes.text(0, 1, "No layer pushes against it.", va="top", fontsize=9)
        return
    rows = [("layer", "part", "removes", "of dims", "strongest channels (share)")]
    for o in oppositions:
        channels = listed((f"{c.label} ({percent(c.share)})" for c in o.channels), 3)
        rows.append(
            (
                str(o.layer + 1),
                _PART[o.part],
                percent(o.removed),
                listed(o.dims, 2),
                channels or "–",
            )
        )
    for i, row in enumerate(rows):
        for x, text in zip((0.0, 0.07, 0.18, 0.28, 0.53), row, strict=True):
            weight = "bold" if i == 0 else "normal"
            axes.text(x, 1 - i / len(rows), text, va="top", fontsize=9, fontweight=weight)
    if count > len(oppositions):
        axes.text(
            1, 1, f"strongest {len(oppositions)} of {count}", va="top", ha="right", fontsize=9
        )


def death_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Until when the outliers live, and what ends them."""
    life, _ = traced(report)
    end, word = life.death, called(report)
    if end.layer is None:
        sentence = f"The {word}s survive the last layer"
    else:
        sentence = f"After layer {end.layer + 1} no {word} is left"
    if not end.oppositions:
        return f"{sentence}; no layer pushes against them by more than a tenth."
    best = max(end.oppositions, key=lambda o: o.removed)
    channels = (
        f" (channel{'s' * (len(best.channels) > 1)} {listed(c.label for c in best.channels)})"
        if best.channels
        else ""
    )
    layers = sorted({o.layer for o in end.oppositions})
    if len(end.oppositions) == 1:
        return f"{sentence}; the {_PART[best.part]} of layer {best.layer + 1} takes back {percent(best.removed)}{channels}."
    return (
        f"{sentence}; layer{'s' * (len(layers) > 1)} {layer_ranges(layers)} push{'es' * (len(layers) == 1)} against them, "
        f"most of all the {_PART[best.part]} of layer {best.layer + 1}, "
        f"which takes back {percent(best.removed)}{channels}."
    )


def _end(report: Lifecycle) -> CloseUp | None:
    """The MLP that takes back most, at the strongest element that enters its layer."""
    life, trace = traced(report)
    mlps = [o for o in life.death.oppositions if o.part == "mlp" and o.channels]
    if not mlps:
        return None
    event = max(mlps, key=lambda o: o.removed)
    element = strongest_element(trace, trace.x_in[event.layer], event.dims)
    return CloseUp(life, trace, event, element, of="what enters")


def has_end(report: Lifecycle) -> bool:
    """Whether an MLP pushes against what was followed."""
    return followed(report) is not None and _end(report) is not None


@style.styled
def end(report: Lifecycle, token_text: TokenText) -> Figure:
    """How channels of a late layer write the opposite of what enters it."""
    shown = _end(report)
    assert shown is not None
    return draw_close_up(report, shown, token_text)


def end_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Signs and shares at the drawn token."""
    shown = _end(report)
    assert shown is not None
    e, m, p = shown.element
    layer, trace = shown.event.layer, shown.trace
    enters, added, left = (part[layer, e, m, p] for part in (trace.x_in, trace.down, trace.h))
    sequence, position = shown.place
    channels = [c.label for c in shown.event.channels]
    return (
        f"In layer {layer + 1} dim {trace.targets.dims[p]} enters with {number(enters)}; the MLP adds {number(added)}, most of it from "
        f"channel{'s' * (len(channels) > 1)} {listed(channels)}, and {number(left)} is left (drawn: token {position} of sequence "
        f"{sequence})."
    )
