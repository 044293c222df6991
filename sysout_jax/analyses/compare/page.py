"""The page of `analyze.compare`: differences in sentences, facts in two columns, figures in two columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.analyses.compare.figures import FIGURES
from sysout_jax.analyses.compare.measure import Comparison, Told
from sysout_jax.figures.spec import draw_figures
from sysout_jax.figures.stamp import stamp
from sysout_jax.figures.style import label_text
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import counting, figure_sections, write_report
from sysout_jax.storage.serialise import plain
from sysout_jax.words import (
    change,
    digits,
    joined,
    layer_ranges,
    listed,
    named,
    number,
    percent,
    plural,
)

NAME = "compare"
ALIKE = 1.05  # ratios closer than this are not called different


def write_comparison(out: Path, report: Comparison, settings: dict[str, Any]) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns all paths."""
    sentences = differences(report)
    drawn = draw_figures(FIGURES, report, _no_text)
    return write_report(
        out,
        NAME,
        f"Two lifecycles side by side: {report.first.name} and {report.second.name}",
        headline=sentences[0],
        payload={"models": [plain(told) for told in report.both], "differences": sentences},
        sections=[
            Section("What differs", (*sentences, facts(report))),
            *figure_sections(FIGURES, report, _no_text, {}),
            Section("How to read this page", (counting(NAME), "A systematic outlier is a number over τ times the mean size of its sequence. A sink head gives the outlier's tokens more than 30% of its attention.")),
        ],
        figures={name: stamp(figure, made_from(report)) for name, figure in drawn.items()},
        settings=settings,
    )  # fmt: skip


def _no_text(sequence: int, position: int) -> str:
    return ""


def differences(report: Comparison) -> list[str]:
    """Plain sentences, the most important one first."""
    return [*_whether(report), *_how_strong(report), *_where(report), *_attention(report), *_cost(report), *_comparable(report)]  # fmt: skip


def _whether(report: Comparison) -> Iterator[str]:
    a, b = report.both
    unlike = a.tau != b.tau
    first, second = (f"{told.name} at τ = {told.tau:g}" if unlike else told.name for told in (a, b))
    if a.found and b.found:
        yield f"Both {first} and {second} have systematic outliers."
    elif a.found or b.found:
        having, other = (a, b) if a.found else (b, a)
        where = f" at τ = {having.tau:g}" if unlike else ""
        yield f"{having.name} has systematic outliers{where}, {other.name} has none at τ = {other.tau:g}."
    else:
        yield f"Neither {first} nor {second} has a systematic outlier."


def _how_strong(report: Comparison) -> Iterator[str]:
    strong, weak = sorted(report.both, key=lambda told: -told.ratio)
    if not weak.ratio > 0:
        return
    times = strong.ratio / weak.ratio
    told = f"{number(strong.ratio)} times its mean in {strong.name}, {number(weak.ratio)} times in {weak.name}"
    if times < ALIKE:
        yield f"The largest number is about as strong in both: {told}."
    else:
        how = f"{number(times)} times as large" if times >= 2 else f"{percent(times - 1)} larger"
        yield f"The largest number is {how} against its mean in {strong.name}: {told}."


def _where(report: Comparison) -> Iterator[str]:
    a, b = report.both
    if not (a.births and b.births):
        return

    def life(told: Told) -> str:
        end = told.num_layers if told.last_alive is None else told.last_alive + 1
        born = layer_ranges(told.births)
        return f"in {told.name} in layer{'s' * (len(told.births) > 1)} {born} of {told.num_layers}, and are last seen in layer {end}"

    yield f"They are born {life(a)}; {life(b)}."
    if a.dims == b.dims:
        yield f"Both use {_dims(a)}."
    else:
        yield f"{a.name} uses {_dims(a)}, {b.name} {_dims(b)}."


def _dims(told: Told) -> str:
    return named("dim", told.dims)


def _attention(report: Comparison) -> Iterator[str]:
    a, b = report.both
    if a.found and b.found:
        if a.heads == b.heads:
            yield f"Both have {plural(a.heads, 'sink head')} after the birth."
        else:
            parts = [f"{told.name} {plural(told.heads, 'sink head')} after the birth" for told in report.both]  # fmt: skip
            yield f"{joined(parts)}.".replace(f"{a.name} ", f"{a.name} has ", 1)


def _cost(report: Comparison) -> Iterator[str]:
    parts = []
    for told in report.both:
        if told.perplexity is not None and told.perplexity_without is not None:
            grows = change(told.perplexity_without / told.perplexity)
            weights = "" if told.birth_weights is None else f" ({told.birth_weights:,.0f} of them)"
            parts.append(f"{grows} in {told.name}{weights}")
    if parts:
        yield f"Without the weights that write the outliers perplexity changes by {joined(parts)}."


def made_from(report: Comparison) -> str:
    """The line that tells on each figure which runs it shows: what they read, and τ."""
    runs = [f"{_read(told)} · τ = {told.tau:g}" for told in report.both]
    names = [label_text(told.name, 24) for told in report.both]
    if runs[0] == runs[1]:
        return f"{joined(names)} · {label_text(runs[0], 80)}"
    return " — ".join(
        f"{name}: {label_text(run, 64)}" for name, run in zip(names, runs, strict=True)
    )


def _comparable(report: Comparison) -> Iterator[str]:
    a, b = report.both
    unlike = []
    if a.tau != b.tau:
        unlike.append(f"τ is {a.tau:g} in one and {b.tau:g} in the other")
    if (a.text, a.sequences, a.length) != (b.text, b.sequences, b.length):
        unlike.append(f"one read {_read(a)}, the other {_read(b)}")
    if unlike:
        yield f"Mind that the runs are not alike: {joined(unlike)}."


def _read(told: Told) -> str:
    return f"{told.text}, {told.sequences:,} × {told.length:,} tokens"


def facts(report: Comparison) -> Table:
    """What each says, a row for each fact."""

    def column(told: Told) -> list[str]:
        end = "the end" if told.found and told.last_alive == told.num_layers - 1 else "–" if told.last_alive is None else str(told.last_alive + 1)  # fmt: skip
        return [
            _read(told),
            f"{told.tau:g}",
            "yes" if told.found else "no",
            f"{number(told.value)}, {number(told.ratio)} times the mean",
            f"{told.peak + 1} of {told.num_layers}, dim {told.dim}",
            layer_ranges(told.births) or "–",
            listed(told.dims) or "–",
            listed(told.channels) or "–",
            end,
            f"{told.heads:,}",
            "–" if told.perplexity is None else digits(told.perplexity, told.length),
            "–" if told.perplexity_without is None else digits(told.perplexity_without, told.length),
        ]  # fmt: skip

    names = ("text", "τ", "systematic outliers", "largest |h|", "its layer", "birth layers", "birth dims",
             "channels of the first birth", "last layer with outliers", "sink heads after the birth", "perplexity",
             "perplexity, birth weights zero")  # fmt: skip
    columns = [column(told) for told in report.both]
    return Table(("", report.first.name, report.second.name), tuple(zip(names, *columns, strict=True)))  # fmt: skip
