"""The page and the terminal summary of `analyze.existence`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sysout_jax.analyses.existence.figures import EXISTENCE, SURFACES, surfaces
from sysout_jax.analyses.existence.measure import Element, Existence
from sysout_jax.figures.spec import draw_figures
from sysout_jax.outliers.definitions import CANDIDATE_SHARE, TAUS, reachable
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import counting, expert_terms, figure_sections, write_report
from sysout_jax.words import joined, listed, number, percent, plural

NAME = "existence"
_BY_ROW = "W_down (by row)"


def write_existence_report(
    out: Path,
    report: Existence,
    token_text: TokenText,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    tables = {
        "overview": _tokens(report, token_text),
        **{name.replace("_", "-"): _elements(report, name, token_text) for name in SURFACES},
    }
    return write_report(
        out,
        NAME,
        f"What outliers look like: {report.model}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=[
            Section("How to read this page", (counting(NAME), *_remarks(report))),
            *figure_sections(EXISTENCE, report, token_text, tables),
            Section("At other thresholds", (_flags(report),)),
            Section("Definitions", (_definitions(report),)),
        ],
        figures=draw_figures(EXISTENCE, report, token_text),
        settings=settings,
        expectation=expectation,
    )


def existence_summary(report: Existence, token_text: TokenText) -> str:
    """One terminal screen."""
    lines = [verdict(report), *remarks(report.stats.nonfinite)]
    for name, title in SURFACES.items():
        surface = getattr(report, name)
        what = (
            "outliers"
            if surface.found
            else f"candidates over {number(surface.level)} times the mean{_of_column(name)}"
        )
        lines.append(
            f"{title:<8}layer {surface.layer + 1}, {what}: {_listing(report, name, token_text)}"
        )
    attention = report.attention
    order = (-attention.received).argsort(kind="stable")[:3]
    received = [f"{_token(report, int(report.shown[i]), token_text)} {percent(float(attention.received[i]))}" for i in order]  # fmt: skip
    lines.append(f"attention  layer {attention.layer + 1}, most received: {', '.join(received)}")
    for name in ("h", "x_down"):
        counts = getattr(report.stats, name).counts.sum(axis=0)
        flags = ", ".join(f"{n:,} at {tau:g}" for tau, n in zip(TAUS, counts, strict=True))
        lines.append(f"Elements of {name} flagged: {flags}")
    return "\n".join(lines)


def verdict(report: Existence) -> str:
    """One sentence: which places hold outliers."""
    holding = [title for title, surface in surfaces(report).items() if surface.found]
    which = f"sequence {report.sequence} ({plural(report.length, 'token')})"
    if report.stats.nonfinite.everything:
        return nothing_measured(report.model, which)
    if not report.found:
        weights = " (W_down holds weight outliers)" if report.w_down.found else ""
        return (
            f"{report.model}: no activation outlier at τ = {report.tau:g} in {which}{weights}; the largest ratios are "
            f"{_largest(report.h.elements)} in h and {_largest(report.x_down.elements)} in x_down."
        )
    calm = [title for title in SURFACES.values() if title not in holding]
    without = f", none in {joined(calm)}" if calm else ""
    return f"{report.model}: outliers at τ = {report.tau:g} in {joined(holding)}{without}; {which}."


def _of_column(name: str) -> str:
    """An outlier of W_down is one of its row; where there is none, columns are compared."""
    return " of their column" if name == "w_down" else ""


def _largest(elements: tuple[Element, ...]) -> str:
    return number(elements[0].ratio) if elements else "0"


def _token(report: Existence, position: int, token_text: TokenText) -> str:
    return f"token {position} “{token_text(report.sequence, position)}”"


def _place(report: Existence, name: str, element: Element, token_text: TokenText) -> str:
    if name == "w_down":
        return f"row {element.line}"
    return _token(report, element.line, token_text)


def _listing(report: Existence, name: str, token_text: TokenText) -> str:
    unit = {"h": "dim", "x_down": "channel", "w_down": "column"}[name]
    return (
        listed(
            (
                f"{unit} {e.label} at {_place(report, name, e, token_text)} ({number(e.value)}, ratio {number(e.ratio)})"
                for e in getattr(report, name).elements
            ),
            3,
        )
        or "none"
    )


def _remarks(report: Existence) -> list[str]:
    lines = remarks(report.stats.nonfinite)
    calm = [(title, s) for title, s in surfaces(report).items() if not s.found]
    if calm:
        levels = joined([f"{number(s.level)} in {title}" for title, s in calm])
        columns = (
            " In W_down that is the ratio to the mean of the column."
            if not report.w_down.found
            else ""
        )
        lines.append(
            f"No outlier at τ = {report.tau:g} in {joined([title for title, _ in calm])}. The strongest elements are highlighted there "
            f"instead: those over {CANDIDATE_SHARE:.0%} of the largest ratio ({levels} times the mean).{columns}"
        )
    if len(report.shown) < report.length:
        lines.append(
            f"{len(report.shown)} of {report.length:,} tokens are drawn: the strongest, their neighbours, and the beginning. Means and "
            "column sums are those of the whole sequence."
        )
    return lines


def _tokens(report: Existence, token_text: TokenText) -> Table:
    rows = tuple(
        (int(t), f"“{token_text(report.sequence, int(t))}”", "yes" if outlier else "no", percent(float(received)))
        for t, outlier, received in zip(report.shown, report.outliers, report.attention.received, strict=True)
    )  # fmt: skip
    what = "outlier of h" if report.h.found else "candidate of h"
    header = ("position", "token", what, "attention received")
    return Table(
        header, rows, "Attention received: head-mean column sum over the length of the sequence."
    )


def _elements(report: Existence, name: str, token_text: TokenText) -> Table | None:
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (_place(report, name, e, token_text), e.label, number(e.value), number(e.ratio))
        for e in getattr(report, name).elements
    )
    unit = {"h": "dim", "x_down": "channel", "w_down": "column"}[name]
    return Table(("place", unit, "value", "ratio"), rows) if rows else None


def _flags(report: Existence) -> Table:
    stats = report.stats
    down = stats.weights.modules.index("down")
    rows: tuple[tuple[str | int, ...], ...] = tuple(
        (name, *(int(n) for n in counts.sum(axis=0)))
        for name, counts in (("x_down", stats.x_down.counts), (_BY_ROW, stats.weights.counts[:, down]), ("h", stats.h.counts))
    )  # fmt: skip
    width = stats.weights.down_weight_ratios.shape[1]
    rows = tuple(
        tuple("n/a" if row[0] == _BY_ROW and i and not reachable(TAUS[i - 1], width) else cell for i, cell in enumerate(row))
        for row in rows
    )  # fmt: skip
    far = [f"{tau:g}" for tau in TAUS if not reachable(tau, width)]
    bound = (
        f" n/a: in rows of {width:,} weights none can exceed {joined(far)} times the mean."
        if far
        else ""
    )
    header = ("elements of", *(f"τ = {tau:g}" for tau in TAUS))
    return Table(header, rows, f"All layers and sequences together.{bound}")


def _definitions(report: Existence) -> Table:
    rows = (
        ("activation outlier", f"|h| > τ · mean|h| of its sequence, τ = {report.tau:g}; x_down alike"),
        ("weight outlier", "|w| > τ · mean|w| of its row of W_down; where there is none, the largest weights of the columns with the largest max|w| / mean|w| are highlighted"),
        ("layer drawn", "x_down and h: where the sequence has its largest ratio; W_down: the first layer with an outlier of h, or with an element that is highlighted in its place; attention: where one token receives most, mean over heads"),
        ("landscape", "magnitudes; of every group of channels the largest is drawn where it stands"),
        *expert_terms(report.stats.x_down.expert_width),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
