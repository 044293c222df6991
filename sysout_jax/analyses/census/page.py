"""The page and the terminal table of `analyze.census`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.census import figures
from sysout_jax.analyses.census.results import Census, Effect, Entry, Pair
from sysout_jax.analyses.census.writers import RANKINGS
from sysout_jax.interventions.weights import CONTROLS, EDITS
from sysout_jax.numerics.intervals import Interval, told
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Picture, Section, Table
from sysout_jax.reports.report import write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.words import digits, joined, number, plural

NAME = "census"
COUNTING = (
    "Layers are counted from 1 on this page and from 0 in census.json. Rows (dims of h), columns (channels of the MLP) and sequences are counted "
    "from 0 everywhere, ranks from 1. [507, 1229] is row 507, column 1229 of W_down."
)
RANK_IS_NOT_SEVERITY = "Rank is not severity: the rankings say where a matrix or an activation is uneven, the edits say what the model loses; how far the two agree is the rank correlation."


def write_census_report(
    out: Path,
    result: Census,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    return write_report(
        out,
        NAME,
        f"Census of writers: {result.model}",
        headline=verdict(result),
        payload=result.to_dict(),
        sections=_sections(result),
        figures={"effects": figures.effects(result), "ranks": figures.ranks(result)},
        settings=settings,
        expectation=expectation,
    )


def verdict(result: Census) -> str:
    """One sentence: whose loss hurts most."""
    if result.nonfinite.everything:
        windows = plural(result.num_sequences, "sequence")
        return nothing_measured(result.model, f"{windows} of {plural(result.length, 'token')}")
    if not np.isfinite(result.loss):
        return f"{result.model}: the loss of this text is not finite, so nothing can be said of what a writer does to it."
    entry, effect = worst(result)
    change = _share(effect.loss_change.value)
    what = f"{effect.edit} of {figures.called(entry)}"
    if not effect.loss_change.value > 0 or effect.loss_change.low <= 0:
        return f"{result.model}: none of {plural(len(result.entries), 'writer')} raises the loss beyond chance when it is taken away."
    return (
        f"{result.model}: of {plural(len(result.entries), 'writer')}, the {what} matters most: set to zero, the loss changes by {change} "
        f"(perplexity {digits(result.perplexity.value)} → {digits(effect.perplexity.value)})."
    )


def worst(result: Census, edits: tuple[str, ...] = ("element", "column", "row")) -> tuple[Entry, Effect]:  # fmt: skip
    """The edit that raises the loss most; one that leaves no finite loss counts as the most of all."""
    effects = [
        (entry, effect)
        for entry in result.entries
        for effect in entry.effects
        if effect.edit in edits
    ]
    return max(effects, key=lambda pair: np.nan_to_num(pair[1].loss_change.value, nan=np.inf))


def agreement_sentence(result: Census) -> str:
    """That rank is not severity, with the correlations."""
    correlations = [
        f"{number(a.correlation)} by {a.ranking} ({a.writers} lines, {a.edit} to zero)"
        for a in result.agreements
    ]
    return f"{RANK_IS_NOT_SEVERITY} Rank correlation with the change of the loss: {joined(correlations)}."


def summary(result: Census) -> str:
    """The writers as a terminal table."""
    rows = [
        (
            figures.called(entry),
            number(entry.writer.write),
            f"{entry.writer.column_rank}/{entry.writer.row_rank}/{entry.writer.write_rank}",
            *(_share(effect.loss_change.value) for effect in entry.effects),
        )
        for entry in result.entries
    ]
    table = text_table(("writer", "|write|", "ranks", *EDITS), rows)
    pairs = [
        f"{_named(result, pair)}, {pair.edit}s: {_share(pair.together.loss_change.value)} together; {_reading(pair)}"
        for pair in result.pairs
    ]
    return "\n".join(
        [
            verdict(result),
            *remarks(result.nonfinite),
            table,
            "Change of the loss. Ranks: by column, row, activation.",
            *pairs,
            agreement_sentence(result),
            _unedited(result),
        ]
    )


def _named(result: Census, pair: Pair) -> str:
    first, second = (figures.called(result.entries[i]) for i in (pair.first, pair.second))
    return f"{first} + {second}"


def _reading(pair: Pair) -> str:
    """What the two say about each other; in words only where the interval excludes chance."""
    excess = pair.excess
    added = _share(pair.together.loss_change.value - excess.value)
    if excess.low > 0:  # NaN where there is one sequence
        return f"{added} as the sum of both alone: each stands in for the other"
    if excess.high < 0:
        return f"{added} as the sum of both alone: one undoes or repeats the other"
    return f"{added} as the sum of both alone"


def _share(value: float) -> str:
    """A relative change as `+313%`, with a digit more where it is small."""
    if not np.isfinite(value):
        return number(value)
    text = f"{100 * value:+,.0f}%" if abs(value) >= 0.1 else f"{100 * value:+.2f}%"
    return text.replace("-", "−")


def _interval(interval: Interval) -> str:
    value = _share(interval.value)
    if not np.isfinite(interval.low):
        return value
    return f"{value} [{_share(interval.low)}, {_share(interval.high)}]"


def _unedited(result: Census) -> str:
    loss = f"{result.loss:.4f} nats" if np.isfinite(result.loss) else "n/a"
    return f"Loss unedited: {loss}. Perplexity: {result.protocol.sentence()}."


def _note(result: Census) -> str:
    """Of a table with intervals and controls."""
    intervals = (
        f"In brackets: {told(result.num_sequences, 'sequences')}; edited and unedited are paired. "
    )
    paired = intervals if result.num_sequences > 1 else ""
    return f"{paired}Controls: mean over {plural(result.num_seeds, 'seed')}. {_unedited(result)}"


def _sections(result: Census) -> list[Section]:
    lines = [COUNTING, *remarks(result.nonfinite), agreement_sentence(result)]
    sections = [
        Section("How to read this page", tuple(lines)),
        Section(
            "Writers",
            (
                _writers(result),
                Picture("ranks", figures.ranks_sentence(result)),
            ),
        ),
        Section(
            "Effects",
            (Picture("effects", figures.effects_sentence(result)), _effects(result)),
        ),
    ]
    if result.pairs:
        sections.append(Section("Pairs", (_pairs(result),)))
    return [*sections, Section("Definitions", (_definitions(),))]


def _writers(result: Census) -> Table:
    rows = tuple(
        (
            w.layer + 1, w.row, w.column, number(w.weight), number(w.write), f"{number(w.column_ratio)} ({w.column_rank:,})",
            f"{number(w.row_ratio)} ({w.row_rank:,})", f"{w.write_rank:,}",
        )
        for w in (entry.writer for entry in result.entries)
    )  # fmt: skip
    header = (
        "layer", "row", "column", "weight", "largest |write|", "column ratio (rank)", "row ratio (rank)", "rank of the write",
    )  # fmt: skip
    note = f"The {plural(result.count, 'strongest writer')} by each ranking, without repetition."
    return Table(header, rows, note)


def _effects(result: Census) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for entry in result.entries:
        controls = {(c.effect.edit, c.kind): c.effect for c in entry.controls}
        for effect in entry.effects:
            beside = [
                _share(controls[effect.edit, kind].loss_change.value)
                if (effect.edit, kind) in controls
                else "–"
                for kind in CONTROLS
            ]
            rows.append(
                (
                    figures.called(entry),
                    effect.edit,
                    digits(effect.perplexity.value),
                    _interval(effect.loss_change),
                    *beside,
                    number(effect.ratio),
                )
            )
    header = ("writer", "edit", "perplexity", "change of the loss", *CONTROLS, "largest ratio left")
    unedited = f"Unedited: perplexity {digits(result.perplexity.value)}, largest ratio {number(result.largest)}. "
    return Table(header, tuple(rows), unedited + _note(result))


def _pairs(result: Census) -> Table:
    def alone(index: int, pair: Pair) -> str:
        return _share(result.entries[index].effect(pair.edit).loss_change.value)

    rows = tuple(
        (
            _named(result, pair), pair.edit, alone(pair.first, pair), alone(pair.second, pair),
            _interval(pair.together.loss_change), _interval(pair.excess), _reading(pair),
        )
        for pair in result.pairs
    )  # fmt: skip
    header = (
        "pair", "edit", "first alone", "second alone", "together", "beyond the sum", "reading",
    )  # fmt: skip
    return Table(header, rows, "Change of the loss with both set to zero at once.")


def _definitions() -> Table:
    rows = (
        ("writer", "an entry W_down[row, column]: it adds W_down[row, column] · x_down[column] to a dim of the residual stream"),
        *((f"ranking by {name}", rule) for name, rule in RANKINGS.items()),
        *((f"edit: {name}", rule) for name, rule in EDITS.items()),
        *((f"control: {name}", rule) for name, rule in CONTROLS.items()),
        ("change of the loss", "mean negative log-likelihood of the counted tokens over that of the unedited model, less 1"),
        ("beyond the sum", "change of the loss together, less the changes of both alone"),
        ("largest ratio left", "largest |h| over the mean |h| of its sequence, all layers"),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
