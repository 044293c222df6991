"""The page and the terminal summary of `analyze.length`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.length.figures import LENGTH
from sysout_jax.analyses.length.measure import SENTENCES, ByLength, Point, Sentence
from sysout_jax.figures.spec import draw_figures
from sysout_jax.outliers.definitions import CANDIDATE_SHARE, CODE_SHARE, TAUS
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import (
    ATTENTION_ON_THEM,
    counting,
    figure_sections,
    write_report,
)
from sysout_jax.words import joined, listed, number, percent, plural

NAME = "length"


def write_length_report(
    out: Path,
    report: ByLength,
    token_text: TokenText,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    tables = {"sentences-h": _sentences(report), "sweep": _sweep(report)}
    return write_report(
        out,
        NAME,
        f"Outliers and the length of the text: {report.model}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=[
            Section("How to read this page", (counting(NAME), *_remarks(report))),
            *figure_sections(LENGTH, report, token_text, tables),
            Section("Definitions", (_definitions(report),)),
        ],
        figures=draw_figures(LENGTH, report, token_text),
        settings=settings,
        expectation=expectation,
    )


def length_summary(report: ByLength) -> str:
    """One terminal screen."""
    what = "outliers" if report.found else f"candidates over {number(report.level)} times the mean"
    lines = [verdict(report), *remarks(report.nonfinite), f"Four sentences ({'with' if report.bos else 'without'} BOS); {what} of h, and the key that receives most attention:"]  # fmt: skip
    for s in report.sentences:
        lines.append(f"  {s.text}")
        lines.append(f"      h: {_marked(report, s)}; attention: {_largest_key(s)}")
    lines.append("  tokens  BOS   ratio of h   of x_down   marked tokens   attention on them")
    for point in report.sweep:
        length, bos, h, x_down, tokens, _, share, *_ = _row(report, point)
        lines.append(f"{length:>8}  {bos:<4}{h:>12}{x_down:>12}{tokens:>16}{share:>20}")
    return "\n".join(lines)


def verdict(report: ByLength) -> str:
    """One sentence: from which length on there are outliers."""
    longest = max(point.length for point in report.sweep)
    if report.nonfinite.everything:
        return nothing_measured(report.model, f"all texts of up to {longest} tokens")
    if not report.found:
        return (
            f"{report.model}: no activation outlier at τ = {report.tau:g} in any text of up to {longest} tokens; the largest |h| is "
            f"{number(report.largest)} times the mean."
        )
    parts = []
    for bos in sorted({point.bos for point in report.sweep}):
        lengths = [
            p.length for p in report.sweep if p.bos == bos and p.reading.ratio.max() > report.tau
        ]
        where = (
            f"at {joined([str(n) for n in lengths]) if len(lengths) < 3 else f'{lengths[0]} to {lengths[-1]}'} tokens"
            if lengths
            else "at no length"
        )
        parts.append(f"{where} {'with' if bos else 'without'} BOS")
    return f"{report.model}: activation outliers of h at τ = {report.tau:g} {joined(parts)} (read: up to {longest} tokens)."


def _remarks(report: ByLength) -> list[str]:
    lines = [
        *remarks(report.nonfinite),
        f"The sentences are read {'with' if report.bos else 'without'} BOS. A growing text is the beginning of the same windows, so "
        "that a longer one only adds tokens. The mean holds the outliers too: n equal ones in T tokens of D dims cannot exceed T · D / n "
        "times the mean, whatever the model does.",
    ]
    if missing := len(SENTENCES) - len(report.sentences):
        lines.append(f"{plural(missing, 'sentence')} longer than the model's context left out.")
    if not report.found:
        lines.append(
            f"No outlier of h at τ = {report.tau:g} in any text. The strongest tokens are marked instead: those over "
            f"{number(report.level)} times the mean, {CANDIDATE_SHARE:.0%} of the largest ratio of all texts."
        )
    return lines


def _marked(report: ByLength, sentence: Sentence) -> str:
    mask = sentence.reading.outliers(report.level)[0]
    return listed((f"“{sentence.pieces[t]}” ({t})" for t in np.flatnonzero(mask)), 6) or "none"


def _largest_key(sentence: Sentence) -> str:
    received = sentence.reading.received[:, 0]
    layer, token = np.unravel_index(received.argmax(), received.shape)
    return f"“{sentence.pieces[token]}” ({token}) {percent(float(received[layer, token]))} in layer {layer + 1}"


def _sentences(report: ByLength) -> Table:
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (
            s.text,
            len(s.pieces),
            number(float(s.reading.ratio.max())),
            _marked(report, s),
            listed((f"“{s.pieces[t]}” ({t})" for t in np.flatnonzero(s.reading.keys_of_code()[0])), 6) or "none",
            _largest_key(s),
        )
        for s in report.sentences
    )  # fmt: skip
    marked = "outlier tokens" if report.found else "candidates"
    header = (
        "sentence",
        "tokens",
        "largest ratio",
        marked,
        "keys with a tenth of all attention",
        "largest key",
    )
    note = f"A tenth of all attention (column sum ≥ {CODE_SHARE:g} · T) is the published code's rule; in short texts even attention passes it."
    return Table(header, rows, note)


def _row(report: ByLength, point: Point) -> tuple[str | int, ...]:
    reading = point.reading
    mask = reading.outliers(report.level)
    share = reading.share(report.level)
    return (
        point.length,
        "yes" if point.bos else "no",
        number(float(reading.ratio.max())),
        number(float(reading.ratio_x_down.max())),
        number(float(mask.sum() / len(mask))),
        ", ".join(f"{number(float(n))} {name}" for name, n in zip(report.classes, reading.by_class(mask, len(report.classes)), strict=True) if n) or "–",
        percent(float(np.nanmax(share))) if np.isfinite(share).any() else "n/a",
        percent(float(reading.received[:, :, 0].mean(axis=1).max())),
        *(int(n) for n in reading.counts),
    )  # fmt: skip


def _sweep(report: ByLength) -> Table:
    rows = tuple(_row(report, point) for point in report.sweep)
    marked = "outlier tokens" if report.found else "candidates"
    header = ("tokens", "BOS", "ratio of h", "ratio of x_down", f"{marked} per sequence", "by class", "attention on them", "on the first token", *(f"h τ={tau:g}" for tau in TAUS))  # fmt: skip
    return Table(
        header,
        rows,
        "Attention: head mean, in the layer where it is largest. The last columns count elements of h flagged in all layers and sequences.",
    )


def _definitions(report: ByLength) -> Table:
    rows = (
        ("outlier token", f"holds an element |h| > τ · mean|h| of its sequence in some layer, τ = {report.tau:g}"),
        ("share of attention", "column sum of the attention map over T, mean over heads"),
        ("attention on outlier tokens", f"{ATTENTION_ON_THEM}; mean over heads"),
        ("even attention", "every query gives all tokens up to itself the same: the first token gets the mean of 1, 1/2, …, 1/T"),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
