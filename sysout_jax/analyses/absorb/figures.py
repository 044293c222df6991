"""Figures of `so.absorb`: the largest activations and where attention goes, layer by layer, before and after."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.absorb.results import Absorption
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import number, percent

BEFORE = {"color": style.BLACK, "marker": "o", "label": "as it is"}
AFTER = {"color": style.ORANGE, "marker": "s", "mfc": "white", "ls": "--", "label": "absorbed"}


@style.styled
def ratios(report: Absorption, token_text: TokenText) -> Figure:
    """Largest |h| and |x_down| over the mean in every layer, with the thresholds."""
    figure = style.new_figure(5.4, _prefix(report))
    part = style.body(figure)
    panels = part.subplots(2, 1, sharex=True)
    for axes, place, title in ((panels[0], "h_ratio", "h"), (panels[1], "x_down_ratio", "x_down")):
        values = [getattr(reading, place) for reading in (report.before, report.after)]
        for look, ratio in zip((BEFORE, AFTER), values, strict=True):
            _line(axes, ratio, look)
        style.log_or_linear(axes, values)
        low, high = axes.get_ylim()
        for tau in TAUS:
            if low < tau < high:
                axes.axhline(tau, color=style.GREY, lw=0.9, ls=(0, (1, 2)), zorder=0)
                axes.text(1.005, tau, f"τ = {tau:g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)  # fmt: skip
        axes.set_title(f"largest |{title}| / mean|{title}|")
        style.layer_axis(axes, report.num_layers, axes is panels[1])
    part.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@style.styled
def attention(report: Absorption, token_text: TokenText) -> Figure:
    """Attention on the text's first token and on the extra keys, mean over heads, and the heads that make sinks of them."""
    figure = style.new_figure(3.4, _prefix(report))
    axes = figure.subplots()
    before, after = report.before, report.after
    extra = {**AFTER, "color": style.BLUE, "marker": "^", "ls": "-"}
    _line(axes, 100 * before.first.mean(axis=1), BEFORE | {"label": "first token, as it is"})
    _line(axes, 100 * after.extra.mean(axis=1), extra | {"label": "extra keys, absorbed"})
    _line(axes, 100 * after.first.mean(axis=1), AFTER | {"label": "first token, absorbed"})
    even = {"color": style.GREY, "lw": 0.9, "ls": (0, (1, 2)), "label": "even share"}
    _line(axes, 100 * report.even_share, even)
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of attention")
    style.layer_axis(axes, report.num_layers)
    style.legend_above(axes, 4)
    return figure


def _prefix(report: Absorption) -> str:
    return "prefix " + " ".join(f"“{style.label_text(text)}”" for text in report.prefix_text)


def _line(axes: Axes, values: np.ndarray, look: dict) -> None:
    x = style.layers_from_one(len(values))
    axes.plot(x, values, markevery=style.mark_every(len(values)), **look)


def _ratios_sentence(report: Absorption, token_text: TokenText) -> str:
    before, after = (reading.h_ratio for reading in (report.before, report.after))
    top = int(np.argmax(before))
    return (
        f"The largest ratio of h falls from {number(before.max())} (layer {top + 1}) to {number(after.max())} "
        f"(layer {int(np.argmax(after)) + 1}), that of x_down from {number(report.before.x_down_ratio.max())} to "
        f"{number(report.after.x_down_ratio.max())}. What is left belongs to tokens of the text, listed below."
    )


def _attention_sentence(report: Absorption, token_text: TokenText) -> str:
    before, after = report.before, report.after
    return (
        f"As it is, the text's first token gets {percent(before.first.mean())} of all attention (the even share would be "
        f"{percent(report.even_share.mean(), 1)}). Absorbed, the extra keys get {percent(after.extra.mean())} and the first token "
        f"{percent(after.first.mean())}."
    )


FIGURES: dict[str, FigureSpec[Absorption]] = {
    "ratios": FigureSpec(ratios, "Largest activations", _ratios_sentence),
    "attention": FigureSpec(attention, "Attention", _attention_sentence),
}
