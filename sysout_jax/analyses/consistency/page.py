"""The page and the terminal summary of `analyze.consistency`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.consistency.figures import CONSISTENCY, attention_bound, row_name
from sysout_jax.analyses.consistency.measure import MEASURES, ROWS, Agreement, Consistency
from sysout_jax.figures.spec import draw_figures
from sysout_jax.numerics.intervals import Interval
from sysout_jax.outliers.definitions import CANDIDATE_SHARE, CODE_SHARE, TAUS
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import counting, figure_sections, write_report
from sysout_jax.reports.terminal import ran_over
from sysout_jax.words import joined, number, percent, plural

NAME = "consistency"
FEW = 10  # sequences


def write_consistency_report(
    out: Path,
    report: Consistency,
    token_text: TokenText,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    tables = {"table": _rows(report, report.shown), "layers": _layers(report)}
    return write_report(
        out,
        NAME,
        f"Consistency of outliers: {report.model}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=[
            Section("How to read this page", (counting(NAME), *_remarks(report))),
            *figure_sections(CONSISTENCY, report, token_text, tables),
            Section("At other thresholds", (_others(report),)),
            Section("Definitions", (_definitions(),)),
        ],
        figures=draw_figures(CONSISTENCY, report, token_text),
        settings=settings,
        expectation=expectation,
    )


def consistency_summary(report: Consistency) -> str:
    """One terminal screen."""
    lines = [verdict(report), *_remarks(report)]
    for name, agreement in (("at τ", report.at_tau), ("candidates", report.candidate)):
        if agreement is None:
            continue
        lines.append(f"{name + ':':<48} overlap (95 % interval)   reverse      IoU   layers")
        averages = [agreement.averages(measure, report.seed) for measure in MEASURES]
        defined = np.isfinite(agreement.layers("overlap")).sum(axis=1)
        for i in range(len(ROWS)):
            overlap, reverse, iou = (each[i] for each in averages)
            lines.append(
                f"  {row_name(i):<46} {_with_interval(overlap):>23} {percent(reverse.value):>9} {percent(iou.value):>8} {defined[i]:>8}"
            )
    return "\n".join(lines)


def verdict(report: Consistency) -> str:
    """One sentence: what Table 1 says for this model."""
    over = ran_over(report.num_sequences, report.length)
    if report.nonfinite.everything:
        return nothing_measured(report.model, over)
    if not report.found:
        return (
            f"{report.model}: no activation outlier at τ = {report.tau:g} in {over}; the largest ratios are "
            f"{number(report.ratios['h'])} in h and {number(report.ratios['x_down'])} in x_down."
        )
    averages = report.at_tau.averages("overlap", report.seed)
    parts = [f"{row_name(i)} {percent(averages[i].value)}" for i, row in enumerate(ROWS) if row.of_paper]  # fmt: skip
    return f"{report.model}: overlap at τ = {report.tau:g} in {over}: {', '.join(parts)}."


def _remarks(report: Consistency) -> list[str]:
    lines = remarks(report.nonfinite)
    if report.num_sequences < FEW:
        lines.append(
            f"The intervals resample {plural(report.num_sequences, 'sequence')}: of so few they say little. Layers are not resampled."
        )
    if report.missing:
        largest = joined(
            [
                f"{number(report.ratios[kind])} in {kind}{' (of its row)' if kind == 'W_down' else ''}"
                for kind in report.missing
            ]
        )
        lines.append(f"No outlier at τ = {report.tau:g} in {joined(list(report.missing))}; the largest ratios are {largest}.")  # fmt: skip
        if report.candidate:
            lines.append(
                f"Where a kind has no outlier, its strongest elements are compared instead: those over {CANDIDATE_SHARE:.0%} of its "
                "largest ratio. They are called candidates."
            )
    return [*lines, *_reach(report)]


def _reach(report: Consistency) -> list[str]:
    """What no model can exceed in sequences of this length, each said once."""
    lines = []
    if report.tau < report.length:
        lines.append(
            f"A key is an attention outlier at τ = {report.tau:g} where it gets {attention_bound(report)}."
        )
    taus = {
        kind: [tau for tau in sorted({report.tau, *TAUS}) if kind in report.out_of_reach(tau)]
        for kind in report.counts
    }
    what = {
        "attention": f"among {report.length:,} keys no column sum of attention",
        "W_down": f"in rows of {report.counts['W_down']:,} no weight of W_down",
        "h": "no element of h",
        "x_down": "no element of x_down",
    }
    parts = [
        f"{what[kind]} can exceed {joined([f'{tau:g}' for tau in over])} times the mean"
        for kind, over in taus.items()
        if over
    ]
    if parts:
        text = "; ".join(parts)
        lines.append(f"{text[0].upper()}{text[1:]}: what needs it is n/a.")
    return lines


def _with_interval(value: Interval) -> str:
    if not np.isfinite(value.value):
        return "n/a"
    if not np.isfinite(value.low):
        return percent(value.value)
    return f"{percent(value.value)} ({100 * value.low:.0f}–{percent(value.high)})"


def _rows(report: Consistency, agreement: Agreement) -> Table:
    averages = [agreement.averages(measure, report.seed) for measure in MEASURES]
    sizes = (agreement.first_size, agreement.second_size)
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (
            ROWS[i].first,
            ROWS[i].second,
            ROWS[i].dimension,
            *(_with_interval(each[i]) for each in averages),
            *(number(float(size[i].max())) for size in sizes),
        )
        for i in range(len(ROWS))
    )
    header = ("type 1", "type 2", "dimension", "overlap (95 % interval)", "reverse", "IoU", "most of type 1", "most of type 2")  # fmt: skip
    note = (
        "Mean over the layers and samples with an outlier of type 1, the last two columns the largest mean size of a set in any layer. "
        "The first four rows are the paper's Table 1."
    )
    return Table(header, rows, note)


def _layers(report: Consistency) -> Table | str:
    per_measure = [report.shown.layers(measure) for measure in MEASURES]
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (layer + 1, row_name(i), *(percent(float(values[i, layer])) for values in per_measure))
        for layer in range(report.num_layers)
        for i, row in enumerate(ROWS)
        if row.of_paper and np.isfinite(per_measure[0][i, layer])
    )
    if not rows:
        return "No layer has an outlier of any first type."
    return Table(("layer", "row", "overlap", "reverse", "IoU"), rows)


def _others(report: Consistency) -> Table:
    agreements = {report.tau: report.at_tau} | report.others
    taus = sorted(agreements)
    averages = [agreements[tau].averages("overlap", report.seed) for tau in taus]
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (row_name(i), *(percent(each[i].value) for each in averages)) for i in range(len(ROWS))
    )
    header = ("overlap of", *(f"τ = {tau:g}" for tau in taus))
    return Table(
        header,
        rows,
        "n/a: no outlier of the first type in any layer, or the threshold is out of reach.",
    )


def _definitions() -> Table:
    rows = (
        ("overlap", "|1 ∩ 2| / |1| of two index sets, the formula of the paper's B.2; mean over samples, heads and layers with an outlier of type 1"),
        ("reverse", "|1 ∩ 2| / |2|; the same layers and samples, of them those with an outlier of type 2"),
        ("IoU", "|1 ∩ 2| / |1 ∪ 2|; the same layers and samples"),
        ("x_down ↔ h, rows of these ↔ h", "the layer's output; where the last outlier of a sample dies, x_down holds what takes it back, and the layer's input is compared"),
        ("W_down extremal columns", f"columns whose max|w| / mean|w| is over {CANDIDATE_SHARE:.0%} of the largest in the layer, where x_down has an outlier; the rows of these are those of their largest weights"),
        ("W_down columns, rows", "lines of the matrix with a weight over τ times the mean of its row; columns are compared with channels of x_down, rows with dims of h"),
        ("x_down, h, feature", "channels or dims with an activation outlier in the sample"),
        ("x_down, h, sequence", "tokens with an activation outlier in the sample"),
        ("attention", "keys whose column sum in the head exceeds τ times the head's mean column sum"),
        ("attention (code's rule)", f"keys whose column sum, mean over heads, is at least {CODE_SHARE:g} · T"),
        ("h before the layer", "output of the previous layer, which this layer's attention reads; the paper's row compares with the layer's own output"),
        ("interval", "2.5 and 97.5 percentiles over resampled samples (bootstrap)"),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
