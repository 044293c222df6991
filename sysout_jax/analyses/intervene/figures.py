"""Figures of `so.intervene`: effects with intervals, outliers per layer, attention per sink head. Every kind of edit beside its control."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sysout_jax.analyses.intervene.measure import Interventions, Outcome
from sysout_jax.analyses.intervene.runs import CONTROL, OUTLIERS
from sysout_jax.figures import style
from sysout_jax.numerics.intervals import Interval
from sysout_jax.words import digits, number, percent, plural

PLACES = {
    "birth": "birth layer",
    "all": "all layers",
    "weight": "birth weight",
    "column": "its column",
    "row": "its row",
    "head": "sink heads",
    "value": "sink values",
}
WORDS = {"zero": "to zero", "mean": "to the mean", "resample": "resampled"}
MAX_LABELS = 26  # sink heads named on an axis
_TARGETS = {OUTLIERS: (style.ORANGE, "o", -0.16), CONTROL: (style.BLUE, "s", 0.16)}
_LINES = {
    "zero": (style.ORANGE, "--", "o"),
    "mean": (style.BLUE, "-.", "^"),
    "resample": (style.PINK, ":", "D"),
}


def called(result: Interventions) -> str:
    """How sentences call the edited elements."""
    return "outlier" if result.found else "candidate"


def remark(result: Interventions) -> str:
    """Says so where what is edited is not an outlier."""
    if result.found:
        return ""
    return (
        f"no outlier at τ = {result.tau:g}; elements over {number(result.level)} times the mean, "
        "shown for orientation"
    )


def kind(outcome: Outcome) -> str:
    """`birth layer, to zero`."""
    return f"{PLACES[outcome.where]}, {WORDS[outcome.what]}"


@style.styled
def effects(result: Interventions) -> Figure:
    """Outliers left, attention on their tokens and perplexity: a point per kind of edit, bars over sequences, dots over seeds."""
    kinds = list(dict.fromkeys((o.where, o.what) for o in result.outcomes))
    figure = style.new_figure(1.6 + 0.42 * len(kinds), remark(result))
    part = style.body(figure)
    panels = part.subplots(1, 3, sharey=True)
    for axes, field, title in (
        (panels[0], "outliers", f"{called(result)}s left"),
        (panels[1], "mass" if result.sinks else "mass_later", "attention on them"),
        (panels[2], "ratio", "perplexity ratio"),
    ):
        _points(axes, result, kinds, field)
        axes.set_title(title)
    panels[0].set_yticks(
        range(len(kinds)), [f"{PLACES[where]}, {WORDS[what]}" for where, what in kinds]
    )
    panels[0].set_ylim(len(kinds) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    part.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4)
    return figure


def _points(axes: Axes, result: Interventions, kinds: list, field: str) -> None:
    baseline: Interval = getattr(result.baseline, field)
    if np.isfinite(baseline.value):
        axes.axvline(baseline.value, color=style.BLACK, ls="--", lw=1.2, label="as it is")
    values = [baseline.value]
    for outcome in result.outcomes:
        interval = getattr(outcome, field)
        colour, marker, offset = _TARGETS[outcome.target]
        y = kinds.index((outcome.where, outcome.what)) + offset
        finite = [v for v in (interval.low, interval.high) if np.isfinite(v)]
        if len(finite) == 2:
            axes.hlines(y, interval.low, interval.high, color=colour, lw=2)
        if not np.isfinite(interval.value):
            where = (0.5, y)
            text = number(interval.value)
            axes.annotate(text, where, xycoords=axes.get_yaxis_transform(), va="center", fontsize=8)
            continue
        axes.plot(interval.seeds, [y] * len(interval.seeds), "|", color=style.BLACK, ms=12, mew=0.8)
        axes.plot(
            interval.value,
            y,
            marker,
            color=colour,
            mec=style.BLACK,
            ms=6,
            label=called_target(result, outcome.target),
            zorder=3,
        )
        values += [interval.value, *finite]
    for y in range(1, len(kinds)):
        if kinds[y][0] != kinds[y - 1][0]:
            axes.axhline(y - 0.5, color=style.BAND, lw=1)
    _scale(axes, np.array(values), field)


def _scale(axes: Axes, values: np.ndarray, field: str) -> None:
    values = values[np.isfinite(values)]
    least, top = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    if field != "ratio":
        axes.set_xlim(-0.06 * max(top, 1e-9), 1.12 * max(top, 1e-9))
    elif top > 20 * least > 0:
        style.log_axis(axes, "x")
        if top > 1000 * least:  # in a narrow panel not every power of ten has room for its label
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
    else:
        # rounding is no effect: the axis never spans less than two per cent
        margin = max(0.12 * (top - least), 0.01 * top)
        axes.set_xlim(least - margin, top + margin)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=4, integer=field == "outliers")
        axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(axis="x")


def called_target(result: Interventions, target: str) -> str:
    """`outliers edited` or the control's name, in legends and tables."""
    return f"{called(result)}s edited" if target == OUTLIERS else "random others edited"


@style.styled
def layers(result: Interventions) -> Figure:
    """Outlier tokens per layer, one panel per place of editing."""
    places = list(dict.fromkeys(o.where for o in result.outcomes))
    figure = style.new_figure(2.9, remark(result))
    part = style.body(figure)
    panels = part.subplots(1, len(places), sharey=True, squeeze=False).ravel()
    x, every = style.layers_from_one(result.num_layers), style.mark_every(result.num_layers)
    for axes, place in zip(panels, places, strict=True):
        axes.plot(x, result.baseline.outliers_per_layer, color="#c4c4c4", lw=5, label="as it is")
        for outcome in result.outcomes:
            if outcome.where != place or outcome.target != OUTLIERS:
                continue
            colour, line, marker = _LINES[outcome.what]
            axes.plot(
                x,
                outcome.outliers_per_layer,
                color=colour,
                ls=line,
                marker=marker,
                mfc="white",
                markevery=every,
                label=WORDS[outcome.what],
            )
        controls = [
            o.outliers_per_layer
            for o in result.outcomes
            if o.where == place and o.target == CONTROL
        ]
        if controls:
            axes.plot(
                x, np.mean(controls, axis=0), color=style.BLACK, lw=1, label="random others, mean"
            )
        axes.set_title(PLACES[place])
        axes.locator_params(axis="y", nbins=5, integer=True)
        style.layer_axis(axes, result.num_layers)
        axes.set_xticks(style.layer_ticks(result.num_layers)[:: 1 + (result.num_layers > 10)])
    panels[0].set_ylabel(
        f"tokens that hold\nan {called(result)}" if result.found else "tokens over\nthe level"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


@style.styled
def heads(result: Interventions) -> Figure:
    """Attention on the original outlier tokens: sink heads × kinds of edit."""
    edited = [o for o in result.outcomes if o.target == OUTLIERS]
    control = [o for o in result.outcomes if o.target == CONTROL]
    rows = [("as it is", result.baseline), *((kind(o), o) for o in edited)]
    rows += [(f"random: {kind(o)}", o) for o in control]
    figure = style.new_figure(1.5 + 0.22 * len(rows), remark(result))
    axes = figure.subplots()
    values = np.stack([o.mass_per_sink for _, o in rows])
    image = axes.imshow(
        values, cmap=style.HEAT, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for y in (0.5, len(edited) + 0.5):
        axes.axhline(y, color=style.BLACK, lw=1)
    if len(result.sinks) <= MAX_LABELS:
        labels = [f"{layer + 1}.{head}" for layer, head in result.sinks]
        axes.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 14 else 0)
    else:
        of_layer = np.array([layer for layer, _ in result.sinks])
        firsts = np.searchsorted(of_layer, np.unique(of_layer))
        step = -(-len(firsts) // 16)
        axes.set_xticks(firsts[::step], [f"{of_layer[i] + 1}" for i in firsts[::step]])
    named = "layer.head" if len(result.sinks) <= MAX_LABELS else "layer (all its sink heads)"
    axes.set_xlabel(f"sink head: {named}")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=20)
    bar.set_label(f"attention on {called(result)} tokens")
    return figure


def _of(result: Interventions, where: str, what: str, target: str) -> Outcome | None:
    wanted = (where, what, target)
    return next((o for o in result.outcomes if (o.where, o.what, o.target) == wanted), None)


def effects_sentence(result: Interventions) -> str:
    """The first edit that was asked for, beside its control."""
    first = result.outcomes[0]
    control = _of(result, first.where, first.what, CONTROL)
    assert control is not None
    field = "mass" if result.sinks else "mass_later"

    def change(outcome: Outcome) -> str:
        mass = percent(getattr(outcome, field).value)
        left = number(outcome.outliers.value)
        return f"{left} left, {mass} attention on them, perplexity {digits(outcome.perplexity.value, result.length)}"

    return (
        f"{called(result).capitalize()}s set {WORDS[first.what]} ({PLACES[first.where]}): {change(first)}; "
        f"as many random others: {change(control)}; as it is: {change(result.baseline)}. "
        "Points are means over seeds (a tick each), bars 95% intervals over sequences."
    ).replace("set resampled", "resampled")


def layers_sentence(result: Interventions) -> str:
    """In how many layers the unedited model has outliers."""
    count = int((result.baseline.outliers_per_layer > 0).sum())
    return (
        f"As it is, the model holds {called(result)}s in {plural(count, 'layer')}; a line on the floor means that the edit left none "
        "there, one on the grey band that it changed nothing."
    )


def heads_sentence(result: Interventions) -> str:
    """How many heads there are and what to compare."""
    return (
        f"{plural(len(result.sinks), 'sink head')} of the unedited model; a row that stays as dark as the first one keeps its attention on "
        "the tokens although they were edited."
    )
