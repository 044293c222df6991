"""Figures of a comparison: two columns, one for each model, on the same scales."""

from __future__ import annotations

from matplotlib.figure import Figure

from sysout_jax.analyses.compare.measure import Comparison, Told
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import number, percent


@style.styled
def strength(report: Comparison, token_text: TokenText) -> Figure:
    """The largest |h| and |x_down| over their means, per layer."""
    figure = style.new_figure(3.4)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, told in zip(panels, report.both, strict=True):
        x, every = style.layers_from_one(told.num_layers), style.mark_every(told.num_layers)
        axes.plot(x, told.h_ratio, color=style.BLACK, marker="o", markevery=every, label="|h|")
        axes.plot(x, told.x_down_ratio, color=style.BLUE, ls="--", marker="s", mfc="white", markevery=every, label="|x_down|")  # fmt: skip
        axes.axhline(told.tau, color=style.GREEN, lw=1, label=f"τ = {told.tau:g}")
        axes.grid(axis="y")
        axes.set_title(style.label_text(told.name, 36), pad=22)
        style.layer_axis(axes, told.num_layers)
        style.legend_above(axes, 3)
    if any(finite_or(values).any() for told in report.both for values in (told.h_ratio, told.x_down_ratio)):  # fmt: skip
        style.log_axis(panels[0])
    panels[0].set_ylabel("largest over mean")
    return figure


def strength_sentence(report: Comparison, token_text: TokenText) -> str:
    """Both peaks."""
    return " ".join(
        f"{told.name}: at most {number(told.ratio)} times the mean, in layer {told.peak + 1} of {told.num_layers}."
        for told in report.both
    )


@style.styled
def attention(report: Comparison, token_text: TokenText) -> Figure:
    """Attention on outlier tokens: heads × layers."""
    figure = style.new_figure(3.6)
    panels = figure.subplots(1, 2)
    for axes, told in zip(panels, report.both, strict=True):
        values = finite_or(told.attention)
        L, H = values.shape
        image = axes.imshow(
            values.T, aspect="auto", origin="upper", cmap=style.HEAT, vmin=0, vmax=1,
            extent=(0.5, L + 0.5, H - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        style.layer_axis(axes, L)
        axes.set_title(f"{style.label_text(told.name, 30)}\non {_on(told)}")
        axes.locator_params(axis="y", nbins=8, integer=True)
    panels[0].set_ylabel("head (from 0)")
    figure.colorbar(image, ax=list(panels), pad=0.015, aspect=15)
    return figure


def _on(told: Told) -> str:
    return "outlier tokens" if told.found else "the first token"


def attention_sentence(report: Comparison, token_text: TokenText) -> str:
    """The mean of each."""
    return " ".join(
        f"{told.name}: {percent(float(finite_or(told.attention).mean()))} of the attention is on {_on(told)}, mean over all heads."
        for told in report.both
    )


FIGURES: dict[str, FigureSpec[Comparison]] = {
    "strength": FigureSpec(strength, "Strength by layer", strength_sentence),
    "attention": FigureSpec(attention, "Attention", attention_sentence),
}
