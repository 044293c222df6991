"""What edits of the birth writers leave: perplexity beside controls, largest |h| and attention by layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.results import Cause, Effect, Lifecycle
from sysout_jax.figures import style
from sysout_jax.figures.edits import CONTROL_LOOKS, EDIT_LOOKS
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import digits, joined, number, plural

_LINES = {"half": ":", "row": "--"}  # what lies on each other is seen
_SPREAD = 30.0  # perplexities over each other from which on their axis is logarithmic


@style.styled
def cause(report: Lifecycle, token_text: TokenText) -> Figure:
    """Perplexity under each edit; by layer the largest |h| and the attention on the outlier tokens."""
    assert report.cause is not None
    causes = report.cause
    figure = style.new_figure(7.2)
    upper, middle, lower = figure.subplots(3, 1, height_ratios=[1.3, 1, 1])
    _perplexities(upper, causes)
    x, every = style.layers_from_one(report.num_layers), style.mark_every(report.num_layers)
    curves = [("as it is", causes.baseline, (style.BLACK, "")), *((edit, causes.edits[edit].effect, look) for edit, look in EDIT_LOOKS.items())]  # fmt: skip
    for axes, field in ((middle, "ratio_per_layer"), (lower, "mass_per_layer")):
        for name, effect, (colour, marker) in curves:
            values = getattr(effect, field)
            shown = np.where(np.isfinite(values), values, np.nan)
            axes.plot(x, shown, color=colour, marker=marker, markevery=every, mfc="white", label=name, ls=_LINES.get(name, "-"))  # fmt: skip
        axes.grid(axis="y")
    middle.axhline(report.tau, color=style.GREEN, lw=1, label="τ")
    style.log_or_linear(middle, np.stack([effect.ratio_per_layer for _, effect, _ in curves]))
    middle.set_ylabel("largest |h|\nover its mean")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("attention on them,\nmean of heads")
    style.layer_axis(middle, report.num_layers, label=False)
    style.layer_axis(lower, report.num_layers)
    style.legend_above(middle, 6)
    return figure


def _perplexities(axes: Axes, causes: Cause) -> None:
    """A line per edit: all writers at once, each alone, and controls; the model as it is as a dashed line."""
    rows = list(EDIT_LOOKS)
    drawn = [causes.baseline.perplexity]

    def point(y: float, effect: Effect, **look) -> None:
        if np.isfinite(effect.perplexity):
            drawn.append(effect.perplexity)
            axes.plot([effect.perplexity], [y], ls="", **look)

    for y, edit in enumerate(rows):
        colour, marker = EDIT_LOOKS[edit]
        for below, (kind, effect) in enumerate(causes.edits[edit].controls.items(), start=1):
            point(y - 0.08 + 0.23 * below, effect, color=style.GREY, marker=CONTROL_LOOKS[kind], ms=8, label=f"control: {kind}")  # fmt: skip
        for effect in causes.edits[edit].alone:
            point(y - 0.25, effect, color=colour, marker=marker, mfc="white", ms=5, label="one writer alone")  # fmt: skip
        point(y, causes.edits[edit].effect, color=colour, marker=marker, ms=8, mec=style.BLACK)
    if np.isfinite(causes.baseline.perplexity):
        axes.axvline(causes.baseline.perplexity, color=style.BLACK, ls="--", lw=1.2, label="as it is")  # fmt: skip
    if max(drawn) > _SPREAD * min(drawn):
        style.log_axis(axes, "x")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("perplexity")
    axes.grid(axis="x")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)  # fmt: skip


def cause_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """What each edit leaves, named, beside its controls."""
    causes = report.cause
    assert causes is not None

    def told(effect: Effect) -> str:
        return f"{digits(effect.perplexity, report.length)} ({left(report, effect)})"

    edits = {name: edit.effect for name, edit in causes.edits.items()}
    weights = plural(causes.edits["element"].weights, "birth weight")
    controls = [
        f"{kind} {digits(effect.perplexity, report.length)}"
        for kind, effect in causes.edits["column"].controls.items()
    ]
    return (
        f"Perplexity is {told(causes.baseline)}. With the {weights} W_down[d*, c*] at zero it is {told(edits['element'])}, halved {told(edits['half'])}, "
        f"with the whole columns at zero {told(edits['column'])}, with the whole rows {told(edits['row'])}; "
        f"controls of the columns: {joined(controls)}. What is left is told from layer {causes.first + 1} on, the first that is edited."
    )


def left(report: Lifecycle, effect: Effect) -> str:
    """What remains of the outliers, at the highest τ that anything reaches: `largest |h| 658 times the mean, under τ but 34 tokens over 300`."""
    largest = f"largest |h| {number(effect.ratio)} times the mean"
    if effect.outliers:
        return largest
    over = [tau for tau, count in effect.flags.items() if count and float(tau) < report.tau]
    if not over:
        return f"{largest}, nothing over any τ"
    return f"{largest}, nothing over τ = {number(report.tau)} but {plural(effect.flags[over[-1]], 'token')} (summed over layers) over {over[-1]}"
