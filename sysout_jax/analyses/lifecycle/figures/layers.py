"""Which layers: activations (paper Figures 3a and 4a), weights (Figure 5a) and attention (Figure 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.figures import style
from sysout_jax.figures.select import Measured, outlier_layers
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import in_layers, number, percent

_TOP_STYLES: Any = (
    {"color": style.BLACK, "ls": "-", "marker": "o", "label": "largest"},
    {"color": style.BLUE, "ls": "--", "marker": "s", "label": "second", "mfc": "white"},
    {"color": style.ORANGE, "ls": "-.", "marker": "^", "label": "third", "mfc": "white"},
)
_MODULE_STYLES = {
    "q": (style.SKY, "-", "v"),
    "k": (style.BLUE, "--", "^"),
    "v": (style.GREEN, "-.", "<"),
    "o": (style.GREY, ":", ">"),
    "gate": (style.YELLOW, "--", "s"),
    "up": (style.PINK, "-.", "D"),
    "down": (style.BLACK, "-", "o"),
}
_PLACES = {"h": "layer output h", "x_down": "input of the down projection x_down"}


@style.styled
def activations(report: Measured, token_text: TokenText) -> Figure:
    """The three largest magnitudes and the median per layer, in h and x_down."""
    figure = style.new_figure(6.4)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (place, title) in zip(panels, _PLACES.items(), strict=True):
        magnitudes(axes, report, place)
        axes.set_title(title, pad=22 if axes is panels[0] else 6)
    style.legend_above(panels[0], 6)
    style.layer_axis(panels[0], report.num_layers, label=False)
    style.layer_axis(panels[1], report.num_layers)
    return figure


def magnitudes(axes: Axes, report: Measured, place: str) -> None:
    """The three largest magnitudes, the median and τ times the mean per layer, in `h` or `x_down`."""
    stats = getattr(report.stats, place)
    x, every = style.layers_from_one(report.num_layers), style.mark_every(report.num_layers)
    top_LxK = stats.sequence_top.mean(axis=1)
    style.mark_layers(axes, outlier_layers(report, place))
    for k, look in enumerate(_TOP_STYLES[: top_LxK.shape[1]]):
        axes.plot(x, _positive(top_LxK[:, k]), markevery=every, **look)
    axes.plot(
        x,
        _positive(stats.median),
        color=style.GREY,
        ls=":",
        marker="x",
        markevery=every,
        label="median",
    )
    axes.plot(
        x, _positive(report.tau * stats.mean), color=style.GREEN, lw=1, label="τ · mean", zorder=1
    )
    if report.num_layers == 1:
        axes.axhline(report.tau * stats.mean[0], color=style.GREEN, lw=1, zorder=1)
    axes.fill_between([], [], color=style.BAND, label="has outliers")
    if np.isfinite(_positive(top_LxK)).any():
        style.log_axis(axes)
    else:
        style.nothing_to_draw(axes)
    axes.grid(axis="y")
    axes.set_ylabel("magnitude\n(mean over sequences)")


def _positive(values: np.ndarray) -> np.ndarray:
    """What a log axis can show."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def activations_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """The largest ratio, where, and how it compares with τ."""
    largest = report.largest_h
    if largest.ratio <= 0:
        return "All activations are zero or not finite: there is nothing to see."
    text = token_text(largest.sequence, largest.token)
    peak = (
        f"|h| is largest against its mean in layer {largest.layer + 1}: {number(largest.value)}, "
        f"{number(largest.ratio)} times the mean, at token {largest.token} “{text}”, dim {largest.channel}"
    )
    places = [
        f"{in_layers(outlier_layers(report, place))} for {place}"
        for place in _PLACES
        if len(outlier_layers(report, place))
    ]
    if not places:
        return f"{peak}; nothing in h or x_down exceeds τ = {report.tau:g} times the mean."
    return f"{peak}; outliers at τ = {report.tau:g} are {' and '.join(places)}."


@style.styled
def weights(report: Measured, token_text: TokenText) -> Figure:
    """Extremal ratio of every matrix: the largest max|w| / mean|w| of its columns."""
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    stats = report.stats.weights
    x, every = style.layers_from_one(report.num_layers), style.mark_every(report.num_layers)
    for m, module in enumerate(stats.modules):
        colour, line, marker = _MODULE_STYLES[module]
        strong = module == "down"
        axes.plot(
            x,
            stats.column_ratio[:, m],
            color=colour,
            ls=line,
            marker=marker,
            markevery=every,
            label=module,
            lw=2.4 if strong else 1.3,
            zorder=3 if strong else 2,
            mfc=colour if strong else "white",
        )
    style.log_or_linear(axes, stats.column_ratio)
    if not stats.column_ratio.any():
        style.nothing_to_draw(axes)
    style.layer_axis(axes, report.num_layers)
    axes.grid(axis="y")
    axes.set_ylabel("extremal ratio of columns")
    style.legend_above(axes, 7)
    return figure


def weights_sentence(report: Measured, token_text: TokenText) -> str:
    """Where the largest extremal ratio is, against the typical one."""
    stats = report.stats.weights
    layer, m = np.unravel_index(np.argmax(stats.column_ratio), stats.column_ratio.shape)
    if stats.column_ratio[layer, m] <= 0:
        return "All weights are zero or not finite: there is nothing to see."
    return (
        f"The largest extremal ratio is {number(stats.column_ratio[layer, m])}, in the {stats.modules[m]} projection of "
        f"layer {layer + 1} (column {stats.column[layer, m]}); half of all matrices stay below "
        f"{number(np.median(stats.column_ratio))}."
    )


@style.styled
def attention(report: Lifecycle, token_text: TokenText) -> Figure:
    """Attention on outlier tokens, or on the first token where there is no outlier: heads × layers, and their range."""
    mass_LxH, what = attention_mass(report)
    return head_shares(mass_LxH, what, report.birth.layer, even_attention(report))


def head_shares(mass_LxH: np.ndarray, what: str, birth: int | None, even_L: np.ndarray) -> Figure:
    """Shares of attention as heads × layers, and their range over heads; `birth` is a layer to mark, `even_L` what even attention would
    give. Call it styled."""
    L, H = mass_LxH.shape
    figure = style.new_figure(5.0 + min(1.6, 0.05 * H))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    if not mass_LxH.any():
        style.nothing_to_draw(upper)
    image = upper.imshow(
        mass_LxH.T,
        aspect="auto",
        origin="upper",  # head 0 on top, as the page draws it
        cmap=style.HEAT,
        vmin=0,
        vmax=_largest(mass_LxH) or 1.0,
        extent=(0.5, L + 0.5, H - 0.5, -0.5),
        interpolation="nearest",
    )
    upper.set_ylabel("head (from 0)")
    upper.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    if H == 1:
        upper.set_yticks([0])
    upper.set_title(f"share of attention on {what}")
    figure.colorbar(image, ax=upper, pad=0.015, aspect=15)
    x, every = style.layers_from_one(L), style.mark_every(L)
    low, high = mass_LxH.min(axis=1), mass_LxH.max(axis=1)
    lower.fill_between(x, low, high, color=style.BAND, lw=0)
    for values, line, marker, name in (
        (high, "--", "^", "largest head"),
        (mass_LxH.mean(axis=1), "-", "o", "mean of heads"),
        (low, ":", "v", "smallest head"),
    ):
        lower.plot(
            x,
            values,
            color=style.BLACK,
            ls=line,
            marker=marker,
            markevery=every,
            label=name,
            mfc="white",
        )
    lower.plot(x, even_L, color=style.BLUE, ls=(0, (1, 1.5)), lw=1.4, label="even attention")
    lower.set_ylim(0, 1.08 * max(_largest(mass_LxH), _largest(even_L)) or 1.0)
    lower.set_ylabel("share")
    lower.grid(axis="y")
    style.layer_axis(upper, L, label=False)
    style.layer_axis(lower, L)
    if birth is not None:
        for axes in (upper, lower):
            edge = axes.axvline(birth + 1.5, color=style.ORANGE, ls=(0, (4, 2)))
        edge.set_label(f"birth (layer {birth + 1})")
    style.legend_above(lower, 3)
    return figure


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else 0.0


def attention_mass(report: Lifecycle) -> tuple[np.ndarray, str]:
    """(L, H) share of attention, and on what."""
    if report.found:
        return finite_or(report.spread.mass), "outlier tokens"
    cumulative = report.stats.attention.cumulative
    return finite_or(cumulative[:, :, 0] / cumulative.shape[2]), "the first token (no outlier at τ)"


def even_attention(report: Lifecycle) -> np.ndarray:
    """(L,) what attention that is even over the keys of each query would give the same tokens."""
    if report.found:
        return finite_or(report.spread.even)
    return report.stats.attention.even_share


def attention_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """How much the strongest head gives, against before the birth or against even attention."""
    mass_LxH, _ = attention_mass(report)
    layer, head = np.unravel_index(np.argmax(mass_LxH), mass_LxH.shape)
    top = f"{percent(mass_LxH[layer, head])} in layer {layer + 1}, head {head}"
    if report.found and report.birth.layer is not None:
        birth = report.birth.layer
        before, after = mass_LxH[: birth + 1], mass_LxH[birth + 1 :]
        if not after.size:
            return f"Outliers are born in the last layer, no attention sees them; their tokens get at most {top}."
        layer, head = np.unravel_index(np.argmax(after), after.shape)
        layer += birth + 1
        return (
            f"Outlier tokens get {percent(before.mean())} of the attention on average up to their birth in layer {birth + 1} "
            f"and {percent(after.mean())} after it, most in layer {layer + 1}, head {head}: {percent(mass_LxH[layer, head])}. There even "
            f"attention would give them {percent(even_attention(report)[layer], 1)}."
        )
    if not mass_LxH.any():
        return "All attention is zero or not finite: there is nothing to see."
    return (
        f"The first token gets at most {top}, {percent(mass_LxH.mean())} on average over all heads; "
        f"even attention would give it {percent(even_attention(report).mean(), 1)}."
    )
