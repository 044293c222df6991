"""Figures of `so.compression`: perplexity of every method, error per layer, and what keeping outliers in full precision gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.compression.results import Attribution, Compression
from sysout_jax.figures import style
from sysout_jax.figures.select import short_names
from sysout_jax.nonfinite import finite_or
from sysout_jax.numerics.intervals import Interval
from sysout_jax.words import change, digits, number, percent

KEPT_LABELS = {
    "birth_weights": "birth weights W_down[d*, c*]",
    "channels": "columns c* of W_down",
    "dims": "dims d* of all matrices",
    "columns": "most extreme column of each matrix",
}
_MODELS = [
    (style.BLUE, "o"), (style.ORANGE, "s"), (style.GREEN, "^"), (style.PINK, "D"), (style.BLACK, "v"),
]  # fmt: skip
_LAYER_TITLES = ("one layer compressed", "relative error of h", "share of own error")
_LOG_FROM = 4.0  # ratios are drawn on a log axis when the largest is this much


def remark(result: Compression) -> str:
    """Says so where what the error is attributed to are no outliers."""
    outliers = result.outliers
    if outliers is None or outliers.found:
        return ""
    return f"no outlier at τ = {outliers.tau:g}; elements over {number(outliers.level)} times the mean, shown for orientation"


@style.styled
def perplexity(results: Sequence[Compression]) -> Figure:
    """Perplexity over that of full precision, and the relative error of the last h: a point per method and model."""
    labels = list(dict.fromkeys(o.label for r in results for o in r.outcomes[1:]))
    figure = style.new_figure(1.5 + 0.3 * len(labels))
    part = style.body(figure)
    panels = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    shown, errors, names = [], 0, short_names([r.model for r in results])
    for i, result in enumerate(results):
        colour, marker = _MODELS[i % len(_MODELS)]
        look = {"color": colour, "marker": marker, "mec": style.BLACK, "ls": "", "ms": 6}
        offset = 0.5 * ((i + 0.5) / len(results) - 0.5)
        for outcome in result.outcomes[1:]:
            y = labels.index(outcome.label) + offset
            ratio = outcome.ratio
            if np.isfinite(ratio.value):
                panels[0].hlines(y, ratio.low, ratio.high, color=colour, lw=2)
                panels[0].plot(ratio.value, y, **look)
                shown += [ratio.value, ratio.low, ratio.high]
            else:
                _write(panels[0], y, number(ratio.value))
            if np.isfinite(outcome.error) and outcome.error > 0:
                panels[1].plot(outcome.error, y, **look)
                errors += 1
            else:
                _write(panels[1], y, "none" if outcome.error == 0 else number(outcome.error))
        panels[1].plot([], [], label=style.label_text(names[i], 40), **look)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    panels[0].set_title("perplexity / full precision")
    panels[0].axvline(1, color=style.BLACK, ls="--", lw=1.2)
    _ratio_axis(panels[0], shown)
    panels[1].set_title("error of the last h")
    if errors:
        style.log_axis(panels[1], "x")
    else:
        panels[1].set_xticks([])
    panels[1].set_xlabel("‖h' − h‖ / ‖h‖,\nmean over tokens")
    for axes in panels:
        axes.grid(axis="x")
        for y in range(len(labels)):
            axes.axhline(y + 0.5, color=style.BAND, lw=0.6)
    if len(results) > 1:
        part.legend(loc="outside lower center", ncols=3)
    return figure


@style.styled
def layers(result: Compression) -> Figure:
    """Per layer: perplexity with this layer alone compressed, its own and the accumulated error of h, shares of the error."""
    rows = result.attributions
    figure = style.new_figure(0.9 + 2.2 * len(rows), remark(result))
    grid = figure.subplots(len(rows), 3, squeeze=False)
    x = style.layers_from_one(result.num_layers)
    for panels, attribution in zip(grid, rows, strict=True):
        every = style.mark_every(len(x))
        full = result.outcomes[0].perplexity.value
        ratio = finite_or(attribution.perplexity_alone / full, np.nan)
        panels[0].plot(x, ratio, "o-", color=style.BLUE, markevery=every, label="perplexity")
        panels[0].axhline(1, color=style.BLACK, ls="--", lw=1)
        panels[0].set_ylabel(f"{attribution.label}\nperplexity ratio")
        if finite_or(ratio).max() > _LOG_FROM:
            panels[0].set_yscale("log")
        else:
            panels[0].ticklabel_format(axis="y", useOffset=False)
            _widen(panels[0], ratio)
        for errors, label, look in (
            (
                attribution.own,
                "of this layer alone",
                {"color": style.ORANGE, "ls": "-", "marker": "s"},
            ),
            (
                attribution.accumulated,
                "accumulated",
                {"color": style.BLACK, "ls": ":", "marker": "^"},
            ),
        ):
            panels[1].plot(x, errors.relative, markevery=every, mfc="white", label=label, **look)
        style.log_or_linear(panels[1], [attribution.own.relative, attribution.accumulated.relative])
        for share, label, look in (
            (attribution.own.tokens_share, "outlier tokens", {"color": style.GREEN, "marker": "o"}),
            (attribution.own.dims_share, "outlier dims d*", {"color": style.PINK, "marker": "D", "ls": "--"}),
        ):  # fmt: skip
            panels[2].plot(x, share, markevery=every, mfc="white", label=label, **look)
        panels[2].set_ylim(-0.04, 1.04)
        for axes, title in zip(panels, _LAYER_TITLES, strict=True):
            if not any(np.isfinite(line.get_ydata()).any() for line in axes.get_lines()):
                style.nothing_to_draw(axes)
            if attribution is rows[0]:
                axes.set_title(title)
            style.layer_axis(axes, result.num_layers, label=attribution is rows[-1])
            axes.set_xticks(style.layer_ticks(result.num_layers)[:: 1 + (result.num_layers > 10)])
            axes.grid(axis="y")
    for axes, columns in ((grid[-1][1], 1), (grid[-1][2], 1)):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.28), ncols=columns)
    return figure


@style.styled
def kept(result: Compression) -> Figure:
    """Perplexity with outliers, or as many random others, kept in full precision: a panel per method."""
    attributions = [a for a in result.attributions if a.kept]
    figure = style.new_figure(1.6 + 0.42 * len(attributions[0].kept), remark(result))
    part = style.body(figure)
    panels = part.subplots(1, len(attributions), sharey=True, squeeze=False)[0]
    for axes, attribution in zip(panels, attributions, strict=True):
        _kept_panel(axes, attribution, result.outcomes[0].perplexity.value)
    panels[0].set_yticks(
        range(len(attributions[0].kept)), [KEPT_LABELS[k.what] for k in attributions[0].kept]
    )
    panels[0].set_ylim(len(attributions[0].kept) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    part.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4)
    return figure


def _kept_panel(axes: Axes, attribution: Attribution, full: float) -> None:
    if np.isfinite(full):
        axes.axvline(full, color=style.BLACK, ls="--", lw=1.2, label="full precision")
    if np.isfinite(attribution.perplexity):
        axes.axvline(attribution.perplexity, color=style.GREY, lw=3, label="nothing kept")
    values = [full, attribution.perplexity]
    for y, outcome in enumerate(attribution.kept):
        looks = (
            (outcome.perplexity, style.ORANGE, "o", -0.14, "outliers kept"),
            (outcome.control, style.BLUE, "s", 0.14, "random others kept"),
        )
        for interval, colour, marker, offset, label in looks:
            middle = float(np.median(interval.seeds))
            at = [y + offset] * len(interval.seeds)
            if len(at) > 1:
                axes.plot(interval.seeds, at, "|", color=style.BLACK, ms=11, mew=0.8)
            axes.plot(middle, y + offset, marker, color=colour, mec=style.BLACK, label=label, ms=6)
            values += list(interval.seeds)
    axes.set_title(attribution.label)
    axes.set_xlabel("perplexity")
    finite = np.array([v for v in values if np.isfinite(v)] or [1.0])
    if not np.isfinite(values).any():
        style.nothing_to_draw(axes)
    if finite.max() > _LOG_FROM * finite.min():
        style.log_axis(axes, "x")
    else:
        margin = max(0.1 * np.ptp(finite), 1e-3 * finite.max())
        axes.set_xlim(finite.min() - margin, finite.max() + margin)
        axes.locator_params(axis="x", nbins=4)
        axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(axis="x")


def draws(perplexity: Interval) -> str:
    """Of draws that may differ by orders of magnitude: their median, and from the least to the most where there are several."""
    seeds = perplexity.seeds
    told = digits(float(np.median(seeds)))
    return f"{told} ({digits(min(seeds))}–{digits(max(seeds))})" if len(seeds) > 1 else told


def _ratio_axis(axes: Axes, values: list[float]) -> None:
    finite = np.array([*(v for v in values if np.isfinite(v)), 1.0])
    if finite.max() > _LOG_FROM:
        style.log_axis(axes, "x")
        return
    margin = max(0.08 * np.ptp(finite), 0.005)
    axes.set_xlim(finite.min() - margin, finite.max() + margin)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", useOffset=False)


def _widen(axes: Axes, ratio: np.ndarray) -> None:
    """Rounding is no effect: the axis never spans less than one per cent."""
    low, high = np.nanmin([*ratio, 1.0]), np.nanmax([*ratio, 1.0])
    margin = max(0.1 * (high - low), 0.005)
    axes.set_ylim(low - margin, high + margin)


def _write(axes: Axes, y: float, text: str) -> None:
    axes.annotate(text, (0.5, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8)


def perplexity_sentence(results: Sequence[Compression]) -> str:
    """Best and worst method of every model."""
    parts = []
    for name, result in zip(short_names([r.model for r in results]), results, strict=True):
        ranked = sorted(result.outcomes[1:], key=lambda o: finite_or(o.ratio.value, np.inf))
        if not ranked:
            continue
        best, worst = ranked[0], ranked[-1]
        parts.append(
            f"{name}: {best.label} {change(best.ratio.value)}, {worst.label} {change(worst.ratio.value)}"
        )
    return (
        f"Least and most change of perplexity against full precision: {'; '.join(parts)}. "
        "Bars are 95% intervals over windows, windows paired."
    )


def layers_sentence(result: Compression) -> str:
    """Which layer makes the largest own error."""
    parts = []
    for attribution in result.attributions:
        own = attribution.own.relative
        if not np.isfinite(own).any():
            continue
        worst = int(np.nanargmax(own))
        shares = attribution.own.tokens_share[worst], attribution.own.dims_share[worst]
        parts.append(
            f"{attribution.label}: the largest error of its own has layer {worst + 1} ({percent(own[worst])} of h), {percent(shares[0])} of it at "
            f"outlier tokens and {percent(shares[1])} in outlier dims"
        )
    return ("; ".join(parts) or "No error of h is finite: there is nothing to see") + "."


def kept_sentence(result: Compression) -> str:
    """What the strongest keep gives beside its control."""
    parts = []
    for attribution in result.attributions:
        if not attribution.kept:
            continue
        best = min(attribution.kept, key=lambda k: finite_or(k.perplexity.value, np.inf))
        parts.append(
            f"{attribution.label}: perplexity {digits(attribution.perplexity)} falls to {digits(best.perplexity.value)} with {best.weights:,} weights kept "
            f"({KEPT_LABELS[best.what]}), to {draws(best.control)} with as many random others"
            if best.perplexity.value < attribution.perplexity
            else f"{attribution.label}: nothing kept lowers the perplexity of {digits(attribution.perplexity)}"
        )
    full = result.outcomes[0].perplexity.value
    return f"{'; '.join(parts)}. Full precision: {digits(full)}. Ticks: seeds."
