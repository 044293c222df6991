"""The page and the terminal summary of `analyze.absorb`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.absorb.figures import FIGURES
from sysout_jax.analyses.absorb.results import Absorption, Reading
from sysout_jax.analyses.absorb.search import GAIN, LENGTH, WINDOWS, WORSE, Tried
from sysout_jax.analyses.lifecycle.story import course_of
from sysout_jax.figures.spec import draw_figures
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import SINK_SHARE, TAUS, is_sink
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import counting, figure_sections, write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.words import digits, in_layers, listed, number, percent, plural

NAME = "absorb"
COLUMNS = ("", "as it is", "absorbed")
MAX_WAVES = 8


def write_absorb_report(
    out: Path, report: Absorption, token_text: TokenText, settings: dict[str, Any]
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    tables: dict[str, str | Table | None] = {"ratios": _stays(report)}
    sections = [
        Section("How to read this page", tuple(_reading(report))),
        Section("Before and after", (Table(COLUMNS, _rows(report), _note(report)),)),
        Section("Waves", (_waves(report),)),
        *figure_sections(FIGURES, report, token_text, tables),
        Section("The proof", (_proof(report),)),
    ]
    if report.search:
        sections.append(Section("The search", _search(report)))
    return write_report(
        out,
        NAME,
        f"Outliers absorbed: {report.name}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=[*sections, Section("Definitions", (_definitions(report),))],
        figures=draw_figures(FIGURES, report, token_text),
        settings=settings,
    )


def verdict(report: Absorption) -> str:
    """What the prefix is, and what absorbing it changes."""
    before, after = report.before, report.after
    if before.nonfinite.everything:
        protocol = report.protocol
        windows = plural(protocol.windows, "sequence")
        return nothing_measured(report.name, f"{windows} of {plural(protocol.length, 'token')}")
    quantised = report.quantised[-1:]
    parts = [
        f"perplexity {digits(before.perplexity.value)} → {digits(after.perplexity.value)}",
        *(f"{pair.label} {digits(pair.before)} → {digits(pair.after)}" for pair in quantised),
    ]
    return (
        f"{report.name} with the prefix {prefix_name(report)} absorbed as {plural(len(report.prefix), 'extra key')} of every key head, "
        f"without training: the largest |h| goes from {number(before.h_ratio.max())} to {number(after.h_ratio.max())} times the mean, "
        f"elements over τ = {report.tau:g} from {_over(before, report.tau)} to {_over(after, report.tau)}; {', '.join(parts)}."
        + _no_help(report)
    )


def _no_help(report: Absorption) -> str:
    """A sentence where absorbing changes little."""
    before, after = (reading.h_ratio.max() for reading in (report.before, report.after))
    if before <= TAUS[0]:
        return f" Nothing was over τ = {TAUS[0]:g}: there is no outlier to remove."
    if after > GAIN * before:
        return " This prefix does not help: what is large belongs to the text's own tokens."
    return ""


def summary(report: Absorption) -> str:
    """The same for the terminal, with the table and the proof."""
    lines = [
        verdict(report),
        *_nonfinite(report),
        f"Protocol  {report.protocol.sentence()}",
        text_table(COLUMNS, _rows(report)),
        f"Proof     {_proof(report)}",
    ]
    waves = [
        f"{name} {len(waves_there)}"
        + (f", up to {number(max(w.ratio for w in waves_there))}" if waves_there else "")
        for name, waves_there in zip(
            COLUMNS[1:], (report.before.waves, report.after.waves), strict=True
        )
    ]
    lines.append(f"Waves     over {TAUS[0]:g} times the mean: {'; '.join(waves)}")
    if report.after.stays:
        shown = ", ".join(
            f"{name} ×{stay.count} (up to {number(stay.ratio)})"
            for name, stay in zip(_stay_names(report), report.after.stays, strict=True)
        )
        lines.append(f"Stays     over τ = {TAUS[0]:g}: {shown}")
    return "\n".join(lines)


def prefix_name(report: Absorption) -> str:
    """The tokens of the prefix as a reader should see them."""
    return " ".join(f"“{text}”" for text in report.prefix_text)


def _over(reading: Reading, tau: float) -> str:
    """Elements over τ where it is one of the thresholds that are counted, else whether there are any."""
    if tau in TAUS:
        return f"{int(reading.h_counts[:, TAUS.index(tau)].sum()):,}"
    return "some" if (reading.h_ratio > tau).any() else "none"


def _rows(report: Absorption) -> tuple[tuple[str, ...], ...]:
    pair = (report.before, report.after)
    length = report.protocol.length

    def row(name: str, value) -> tuple[str, ...]:
        return (name, *(value(reading) for reading in pair))

    return (
        row("perplexity", lambda r: digits(r.perplexity.value, length)),
        *(
            (f"perplexity, {pair.label}", digits(pair.before), digits(pair.after))
            for pair in report.quantised
        ),
        row("largest |h| / mean", lambda r: number(r.h_ratio.max())),
        row("largest |x_down| / mean", lambda r: number(r.x_down_ratio.max())),
        *(
            row(
                f"elements of h over τ = {tau:g}", lambda r, i=i: f"{int(r.h_counts[:, i].sum()):,}"
            )
            for i, tau in enumerate(TAUS)
        ),
        row("attention on the first token", lambda r: percent(r.first.mean())),
        row("attention on the extra keys", lambda r: percent(r.extra.mean())),
        row(
            "heads with their sink at the first token",
            lambda r: _sinks(r.first, report.even_share[:, None]),
        ),
        row("heads with their sink at the extra keys", lambda r: _sinks(r.extra)),
    )


def _sinks(share_LxH: np.ndarray, even: np.ndarray | float = 0.0) -> str:
    return f"{int(is_sink(share_LxH, even).sum()):,} of {share_LxH.size:,}"


def _waves(report: Absorption) -> Table | str:
    """Lives of large elements, in both models."""
    rows = tuple(
        (
            name,
            f"{number(wave.ratio)}{' (over τ)' if wave.above else ''}",
            listed(wave.dims, 6),
            course_of(wave),
            f"{len(wave.tokens):,} ({wave.first_tokens} first)",
        )
        for name, reading in zip(COLUMNS[1:], (report.before, report.after), strict=True)
        for wave in reading.waves[:MAX_WAVES]
    )
    if not rows:
        return f"No element of h exceeds {TAUS[0]:g} times the mean in either model."
    header = ("model", "times the mean", "dims", "course", "tokens")
    note = f"Every life of elements over {TAUS[0]:g} times the mean, as in the lifecycle"
    return Table(header, rows, f"{note}; at most {MAX_WAVES} of each model.")


def _note(report: Absorption) -> str:
    return f"Scales of quantised inputs are those of each model itself, calibrated on {report.calibration}."


def _reading(report: Absorption) -> list[str]:
    count = len(report.prefix)
    where = "at the position −1" if count == 1 else f"at the positions −{count} … −1"
    lines = [
        f"The original computes the keys and values of the prefix {prefix_name(report)} anew in front of every text. Here they are "
        f"computed once and kept as {plural(count, 'constant')} of every layer and key head, {where}. Attention sees no "
        "difference, and the prefix, the only token that carries what was parked on it, is no longer computed.",
        f"Read texts without the prefix: it is inside the model. Its context is shorter by {plural(count, 'token')}.",
        f"Protocol: {report.protocol.sentence()}.",
        counting(NAME),
    ]
    return lines + _nonfinite(report)


def _nonfinite(report: Absorption) -> list[str]:
    readings = (("as it is", report.before), ("absorbed", report.after))
    return [f"{name}: {line}" for name, reading in readings for line in remarks(reading.nonfinite)]


def _proof(report: Absorption) -> str:
    proof = report.proof
    logits = "n/a" if np.isnan(proof.logits) else f"{proof.logits:.2g}"
    return (
        f"The absorbed model on the text and the original on [prefix, text], both in {proof.dtype}: logits differ by at most "
        f"{logits} (the largest is {number(proof.logits_of)}; first {plural(proof.tokens, 'token')}), the likelihoods of next tokens "
        f"by at most {'n/a' if np.isnan(proof.nll) else f'{proof.nll:.2g} nats'} over all windows. What is left is rounding."
    )


def _stay_names(report: Absorption) -> list[str]:
    tokenizer = report.model.tokenizer
    return [tokenizer.token(s.token) if tokenizer else f"[{s.token}]" for s in report.after.stays]


def _stays(report: Absorption) -> Table | str:
    """Tokens that still hold large elements."""
    if not report.after.stays:
        return f"No element of h exceeds {TAUS[0]:g} times the mean any more."
    rows = tuple(
        (
            name,
            stay.token,
            stay.count,
            number(stay.ratio),
            in_layers(stay.layers).removeprefix("in "),
        )
        for name, stay in zip(_stay_names(report), report.after.stays, strict=True)
    )
    header = ("what stays: token", "id", "times", "largest |h| / mean", "where")
    return Table(
        header, rows, f"Tokens with elements of h over τ = {TAUS[0]:g} in the absorbed model."
    )


def _search(report: Absorption) -> tuple[str | Table, ...]:
    def name(tried: Tried) -> str:
        return " ".join(_shown(report.model, token) for token in tried.prefix) or "none"

    rows = tuple(
        (
            name(tried),
            number(tried.ratio),
            digits(tried.perplexity),
            "chosen" if tried.chosen else "",
        )
        for tried in report.search
    )
    text = (
        f"Every candidate was read before the text of the search ({report.calibration}; at most {WINDOWS} windows of {LENGTH} tokens of it). The smallest "
        f"largest ratio of h wins, among those that do not raise the perplexity by more than {WORSE - 1:.0%}; a longer prefix must lower it "
        f"by another {1 - GAIN:.0%}."
    )
    header = ("prefix", "largest |h| / mean", "perplexity", "")
    return text, Table(header, rows)


def _shown(lm: LanguageModel, token: int) -> str:
    return f"“{lm.tokenizer.token(token)}”" if lm.tokenizer else f"[{token}]"


def _definitions(report: Absorption) -> Table:
    rows = (
        ("absorbed", "attention_bias, An et al. 2025, variant (d), with the prefix's keys and values as extra keys: softmax over them and the text's keys. "
         "Rotary keys are turned back by the length of the prefix, learned positions begin later by it"),
        ("largest |h| / mean", "over the elements of h of all sequences and layers, each over the mean |h| of its sequence and layer"),
        ("attention on …", "mean over queries, heads, layers and sequences"),
        ("wave", "a life of large elements of h, found from what layers write; see the lifecycle's definitions"),
        ("a head's sink", f"more than {SINK_SHARE:.0%} of its attention, at the first token also more than the even share, mean over queries and sequences (Gu et al. 2024)"),
        ("even share", f"what attention spread evenly over all keys that a query sees gives the first one, mean over queries and layers: {percent(report.even_share.mean(), 1)}"),
        ("A8 static per tensor", "the inputs of all linear layers of all blocks rounded to 8 bits, with one scale each, from the largest |x| in calibration"),
        ("W8A8 static per tensor", "and their weights to 8 bits with one scale per matrix; embeddings and head in full precision"),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
