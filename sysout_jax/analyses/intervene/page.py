"""The page and the terminal table of `analyze.intervene`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sysout_jax.analyses.intervene import figures
from sysout_jax.analyses.intervene.measure import Interventions, Outcome
from sysout_jax.analyses.intervene.runs import CONTROL, WHAT, WHERE
from sysout_jax.numerics.intervals import Interval, told
from sysout_jax.outliers.definitions import SINK_SHARE
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Picture, Section, Table
from sysout_jax.reports.report import ATTENTION_ON_THEM, write_report
from sysout_jax.reports.terminal import ran_over, text_table
from sysout_jax.words import change, digits, in_layers, listed, named, number, percent, plural

NAME = "intervene"
#: What is edited there, and its random counterpart.
EDITED = {
    "weight": ("birth weight", "random weight"),
    "column": ("weight", "other weight"),
    "row": ("weight", "other weight"),
    "head": ("head", "other head"),
    "value": ("value vector", "other value vector"),
}
COUNTING = (
    "Layers are counted from 1 on this page and from 0 in intervene.json. Sequences, tokens, dims and heads are counted from 0 "
    "everywhere."
)
_DISPUTED = (
    "Whether massive activations cause sinks, and whether they are critical at all, is disputed in the literature; this page "
    "says what was measured on this model and text and nothing more."
)


def write_interventions_report(
    out: Path,
    result: Interventions,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    drawn = {"effects": figures.effects, "layers": figures.layers}
    if result.sinks:
        drawn["heads"] = figures.heads
    return write_report(
        out,
        NAME,
        f"Interventions on systematic outliers: {result.model}",
        headline=verdict(result),
        payload=result.to_dict(),
        sections=[*_sections(result), Section("Definitions", (_definitions(result),))],
        figures={name: draw(result) for name, draw in drawn.items()},
        settings=settings,
        expectation=expectation,
    )


def verdict(result: Interventions) -> str:
    """One sentence: what was edited."""
    what = f"{plural(result.elements, 'element')} of h ({plural(result.tokens, 'token')}, {named('dim', result.dims)})"
    where = ran_over(result.num_sequences, result.length)
    born = f"born {in_layers(result.birth_layers)} of {result.num_layers}"
    if result.found:
        return f"{result.model}: {what} are outliers at τ = {result.tau:g}, {born}, in {where}."
    return (
        f"{result.model}: no activation outlier at τ = {result.tau:g} in {where} (largest |h| is {number(result.largest)} times "
        f"the mean); for orientation, {what} over {number(result.level)} times the mean are edited instead, {born}."
    )


def summary(result: Interventions) -> str:
    """The outcomes as a terminal table: value, interval over sequences; where and what as the flags name them."""
    _, rows = _rows(result)
    outcomes = [(o.where, o.what) for o in result.outcomes]
    short = [
        (*kind, edited, left, *(_one_unit(cell) for cell in cells))
        for kind, (_, _, edited, left, *cells) in zip([("none", "–"), *outcomes], rows, strict=True)
    ]
    called = figures.called(result)
    table = text_table(
        ("where", "what", "edited", "left", "attention", "perplexity", "its change"), short
    )
    what = (
        f"Left: tokens that still hold an {called}, summed over layers."
        if result.found
        else f"Left: {called}s."
    )
    return "\n".join(
        [verdict(result), *_nonfinite(result), *result.notes, table, what, _note(result)]
    )


def _nonfinite(result: Interventions) -> list[str]:
    """What is not finite in the model as it is, and what edits add to it."""
    made = [
        f"{figures.kind(o)}, {figures.called_target(result, o.target)} ({o.nonfinite:,})"
        for o in result.outcomes
        if o.nonfinite > result.nonfinite.h.total
    ]
    lines = remarks(result.nonfinite)
    if made:
        lines.append(f"Edits after which elements of h are NaN or inf: {listed(made)}.")
    return lines


def _one_unit(cell: str) -> str:
    """`9% [6%, 11%]` as `9% [6, 11]`."""
    value, bracket, interval = cell.partition(" [")
    return value + bracket + interval.replace("%", "")


def _rows(result: Interventions) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    field = "mass" if result.sinks else "mass_later"

    def row(where: str, what: str, edited: str, outcome: Outcome) -> tuple[str, ...]:
        changed = outcome is not result.baseline
        return (
            where,
            what,
            edited,
            _interval(outcome.outliers),
            _interval(getattr(outcome, field), percent),
            digits(outcome.perplexity.value, result.length),
            _interval(outcome.ratio, change) if changed else "–",
        )

    rows = [row("as it is", "–", "–", result.baseline)]
    for o in result.outcomes:
        born, other = EDITED.get(o.where, (figures.called(result), "random other"))
        edited = plural(o.edited, other if o.target == CONTROL else born)
        rows.append(row(figures.PLACES[o.where], figures.WORDS[o.what], edited, o))
    header = (
        "where", "what", "edited", f"{figures.called(result)}s left", "attention on them", "perplexity", "its change",
    )  # fmt: skip
    return header, rows


def _interval(interval: Interval, show=number) -> str:
    """`5.47 [5.1, 5.9]`; one number where nothing can vary."""
    low, high = show(interval.low), show(interval.high)
    value = show(interval.value)
    return value if (low == high == value or low == "n/a") else f"{value} [{low}, {high}]"


def _note(result: Interventions) -> str:
    heads = (
        f"mean over {plural(len(result.sinks), 'sink head')}"
        if result.sinks
        else "mean over all heads after the birth, as none is a sink"
    )
    return (
        f"In brackets: {told(result.protocol.windows, 'sequences')}. Resamples and random others: mean over "
        f"{plural(result.num_seeds, 'seed')}. Attention: {heads}. Change: of perplexity against the unedited model, sequences paired. "
        f"Perplexity: {result.protocol.sentence()}."
    )


def _sections(result: Interventions) -> list[Section]:
    header, rows = _rows(result)
    lines = [COUNTING, *_nonfinite(result), _DISPUTED, *result.notes]
    if not result.found:
        lines.insert(
            0,
            f"No outlier at τ = {result.tau:g}: the strongest elements are edited instead, for orientation.",
        )
    if result.dims_left_out:
        lines.append(
            f"Outliers of {plural(result.dims_left_out, 'weaker dim')} are counted but not edited."
        )
    sections = [
        Section("How to read this page", tuple(lines)),
        Section(
            "Effects",
            (
                Picture("effects", figures.effects_sentence(result)),
                Table(header, tuple(rows), _note(result)),
                _seeds(result),
            ),
        ),
        Section("Outliers per layer", (Picture("layers", figures.layers_sentence(result)),)),
    ]
    if result.sinks:
        heads = Picture("heads", figures.heads_sentence(result))
        sections.append(Section("Sink heads", (heads,)))
    return sections


def _seeds(result: Interventions) -> Table | str:
    """Spread over seeds, where chance has a part."""
    field = "mass" if result.sinks else "mass_later"

    def spread(interval: Interval, show=number) -> str:
        least, most = show(min(interval.seeds)), show(max(interval.seeds))
        return least if least == most else f"{least} … {most}"

    rows = tuple(
        (
            figures.kind(o),
            figures.called_target(result, o.target),
            spread(o.outliers),
            spread(getattr(o, field), percent),
            spread(o.perplexity, lambda value: digits(value, result.length)),
            spread(o.ratio, change),
        )
        for o in result.outcomes
        if len(o.perplexity.seeds) > 1
    )
    if not rows:
        return "One seed only: no spread over seeds."
    header = (
        "edit",
        "of",
        f"{figures.called(result)}s left",
        "attention on them",
        "perplexity",
        "its change",
    )
    return Table(header, rows, f"Smallest and largest of {plural(result.num_seeds, 'seed')}.")


def _definitions(result: Interventions) -> Table:
    places, kinds = {o.where for o in result.outcomes}, {o.what for o in result.outcomes}
    rows = (
        (f"{figures.called(result)}", f"|h| > {number(result.level)} · mean|h| of its sequence, in the unedited model"),
        (f"{figures.called(result)}s left", "tokens that hold such an element in the edited model, summed over layers and sequences"),
        *((f"where: {figures.PLACES[name]}", rule) for name, rule in WHERE.items() if name in places),
        *((f"what: {figures.WORDS[name]}", rule) for name, rule in WHAT.items() if name in kinds),
        ("random others", "as many elements of the same sequences and layers, uniform over tokens and the dims without outliers; "
         "weights: as many entries of the same rows in other channels; columns and rows: as many others; heads: as many others after "
         "the birth; value vectors: those of as many other tokens"),
        ("attention on them", f"of the unedited model's {figures.called(result)} tokens: {ATTENTION_ON_THEM}; a sink head gives them "
         f"more than {SINK_SHARE:.0%} in the unedited model, in a layer after the first birth"),
        ("perplexity", f"exp of the mean negative log-likelihood of the counted tokens: {result.protocol.sentence()}"),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
