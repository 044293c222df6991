"""The spread (paper Figure 8): how one head comes to look at outlier tokens, and how little they give it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.followed import called, subtitle, traced
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.analyses.lifecycle.sinks import SinkHead
from sysout_jax.analyses.lifecycle.trace import Trace
from sysout_jax.figures import style
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.definitions import main_part
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import listed, named, percent

MAX_TOKENS = 22  # positions whose text stays readable on the axis of a heat map
BEFORE = 3  # positions shown before the first outlier token
MAX_NAMED = 6  # q/k dims named in the panel
MAX_INPUTS = 3  # dims of the normalised input named in the panel
MANY = 256  # dims from which on there is no room for marks
OTHERS = "others: mean and range"


@style.styled
def spread(report: Lifecycle, token_text: TokenText) -> Figure:
    """The head with the most attention on outlier tokens: its normalised input, q, k and v per dim, q·k, ‖v‖, logits and
    probabilities."""
    _, trace = traced(report)
    head, mask, view = trace.close_up, _outliers(trace), _view(trace)
    figure = style.new_figure(13.4, subtitle(report))
    heights = [2.8, 2.6, 3, 5.4]
    above, first, top, bottom = figure.subfigures(
        4, 1, height_ratios=heights, squeeze=False
    ).ravel()
    entering = above.subplots()
    _signed(entering, head.x, mask, report)
    _name_dims(entering, head.x, mask)
    entering.margins(y=0.1)
    entering.set_xlabel("dim of h")
    entering.set_ylabel("signed value")
    title = f"what enters attention of layer {head.layer + 1}: h before it, normalised"
    entering.set_title(title, pad=22 if entering.get_legend() else 6)
    for axes, name in zip(first.subplots(1, 3), "qkv", strict=True):
        _signed(axes, getattr(head, name), mask, report)
        axes.set_xlabel("dim of the head")
        axes.set_title(
            f"{name} of layer {head.layer + 1}, head {head.head}" if name == "q" else name
        )
    first.axes[0].set_ylabel("signed value")
    handles, labels = first.axes[0].get_legend_handles_labels()
    first.legend(handles, labels, loc="outside lower center", ncols=2)
    left, right = top.subplots(1, 2)
    _dims(left, trace)
    left.set_title("q·k per dim", pad=20)
    _value_norms(right, trace, mask, report)
    right.set_title("length of the values", pad=20)
    labels = _labels(trace, view, token_text)
    panels = bottom.subplots(1, 2, sharey=True)
    logits = np.where(np.isfinite(head.logits), head.logits, np.nan)
    for axes, values, title in (
        (panels[0], logits, "logits q·k / √d"),
        (panels[1], np.where(np.isfinite(logits), head.probabilities, np.nan), "probabilities"),
    ):
        style.token_map(axes, values[view, view], title, labels, mask[view])
        first_shown, last_shown = head.start + view.start, head.start + view.stop - 1
        axes.set_xlabel(f"key: positions {first_shown}–{last_shown} of {report.length:,} are drawn")
    panels[0].set_ylabel("query")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[1].tick_params(labelleft=False)
    return figure


def _outliers(trace: Trace) -> np.ndarray:
    """(W,) bool: outlier tokens of the close-up's positions; it shows the first followed sequence."""
    layer, start = trace.close_up.layer, trace.close_up.start
    return trace.targets.mask[
        layer, trace.targets.sequences[0], start : start + len(trace.close_up.q)
    ]


def _view(trace: Trace) -> slice:
    """Which positions of the close-up the heat maps show: from shortly before its first outlier token on."""
    mask = _outliers(trace)
    first = int(mask.argmax()) if mask.any() else 0
    start = int(np.clip(first - BEFORE, 0, max(len(mask) - MAX_TOKENS, 0)))
    return slice(start, min(start + MAX_TOKENS, len(mask)))


def _labels(trace: Trace, view: slice, token_text: TokenText) -> list[str]:
    sequence, start = int(trace.targets.sequences[0]), trace.close_up.start
    return [
        f"{style.label_text(token_text(sequence, start + i), 9)} {start + i}"
        for i in range(view.start, view.stop)
    ]


def _signed(axes: Axes, values_WxDh: np.ndarray, mask: np.ndarray, report: Lifecycle) -> None:
    """Every dim: the range over ordinary tokens, and the mean over outlier tokens."""
    dims = np.arange(values_WxDh.shape[1])
    values = finite_or(values_WxDh)
    if len(dims) > MANY:
        _many(axes, values, mask, report)
    else:
        _few(axes, values, mask, report)
    axes.axhline(0, color=style.BLACK, lw=0.8, zorder=0)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.locator_params(axis="y", nbins=5)


def _few(axes: Axes, values_WxC: np.ndarray, mask: np.ndarray, report: Lifecycle) -> None:
    dims = np.arange(values_WxC.shape[1])
    if (~mask).any():
        others = values_WxC[~mask]
        axes.vlines(dims, others.min(0), others.max(0), color="#b5b5b5", lw=2.2)
        axes.plot(dims, others.mean(0), "_", color=style.BLACK, ms=5, label=OTHERS)
    if mask.any():
        look: Any = {"color": style.ORANGE, "mec": style.BLACK, "mew": 0.6, "ms": 4}
        axes.plot(dims, values_WxC[mask].mean(0), "o", label=f"{called(report)} tokens: mean", **look)  # fmt: skip


def _many(axes: Axes, values_WxD: np.ndarray, mask: np.ndarray, report: Lifecycle) -> None:
    """A band and stems: so many dots would cover each other."""
    dims = np.arange(values_WxD.shape[1])
    if (~mask).any():
        others = values_WxD[~mask]
        axes.fill_between(dims, others.min(0), others.max(0), step="mid", color="#b5b5b5", lw=0, label="others: range")  # fmt: skip
    if mask.any():
        mean = values_WxD[mask].mean(0)
        axes.vlines(dims, 0, mean, color=style.ORANGE, lw=0.9, label=f"{called(report)} tokens: mean", zorder=3)  # fmt: skip
    style.legend_above(axes, 2)


def _name_dims(axes: Axes, values_WxD: np.ndarray, mask: np.ndarray) -> None:
    """Write the numbers of the dims that stand out most in outlier tokens beside their marks."""
    values = finite_or(values_WxD)
    if not mask.any() or mask.all():
        return
    mean = values[mask].mean(0)
    stand_out = np.maximum(mean - values[~mask].max(0), values[~mask].min(0) - mean)
    for dim in np.argsort(-stand_out, kind="stable")[:MAX_INPUTS]:
        if min(stand_out[dim], abs(mean[dim])) > 0.2 * np.abs(mean).max():
            axes.annotate(
                str(dim),
                (dim, mean[dim]),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                fontweight="bold",
            )


def _dims(axes: Axes, trace: Trace) -> None:
    parts = finite_or(trace.qk[trace.close_up.layer, trace.close_up.head])
    strong = main_part(parts)  # those that the table names
    axes.bar(np.arange(len(parts)), parts, 0.9, color=style.GREY, rasterized=len(parts) > 512)
    axes.bar(
        strong,
        parts[strong],
        0.9,
        color=style.ORANGE,
        edgecolor=style.BLACK,
        lw=0.8,
        label=named("dim", np.sort(strong), MAX_NAMED),
    )
    axes.axhline(0, color=style.BLACK, lw=0.8)
    axes.set_xlabel("dim of the head")
    axes.locator_params(axis="x", nbins=8, integer=True)
    axes.set_ylabel("logit to outlier\nminus other tokens")
    axes.margins(y=0.1)
    if len(strong):
        style.legend_above(axes, 1)


def _value_norms(axes: Axes, trace: Trace, mask: np.ndarray, report: Lifecycle) -> None:
    norms = np.linalg.norm(finite_or(trace.close_up.v), axis=1)
    positions = trace.close_up.start + np.arange(len(norms))
    axes.bar(positions, norms, 0.9, color=style.GREY)
    axes.bar(
        positions[mask],
        norms[mask],
        0.9,
        color=style.ORANGE,
        edgecolor=style.BLACK,
        hatch="//",
        lw=0.8,
        label=f"{called(report)} token",
    )
    axes.set_xlabel("position in the sequence")
    axes.set_ylabel("‖v‖")
    axes.locator_params(axis="x", nbins=8, integer=True)
    if mask.any():
        style.legend_above(axes, 1)


def _sink(life: Lifecycle, trace: Trace) -> SinkHead | None:
    head = trace.close_up
    return next(
        (s for s in life.spread.heads if (s.layer, s.head) == (head.layer, head.head)), None
    )


def spread_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """How much the head gives, which dims carry it, and what the values are worth."""
    life, trace = traced(report)
    sink = _sink(life, trace)
    head, word = trace.close_up, called(report)
    group = trace.mass.shape[1] // trace.drain.shape[1]
    drain = float(trace.drain[head.layer, head.head // group])
    sentence = (
        f"Head {head.head} of layer {head.layer + 1} gives {percent(trace.mass[head.layer, head.head])} of its attention to "
        f"{word} tokens"
    )
    if np.isfinite(drain):
        sentence += f", whose values have {percent(drain)} of the length of the others'"
    if sink is None:
        return f"{sentence}; it is no sink head."
    return (
        f"{sentence}; dim{'s' * (len(sink.dims) > 1)} {listed(sink.dims)} of q and k "
        f"carr{'y' if len(sink.dims) > 1 else 'ies'} {percent(sink.dims_share)} of the difference in logits."
    )
