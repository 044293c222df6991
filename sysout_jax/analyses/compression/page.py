"""The page and the terminal table of `analyze.compression`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.analyses.compression import figures
from sysout_jax.analyses.compression.keeps import KEEPS
from sysout_jax.analyses.compression.results import Attribution, Compression, Outcome
from sysout_jax.compress.methods import INPUT_BITS, LEFT_OUT, METHODS
from sysout_jax.figures.select import short_names
from sysout_jax.numerics.intervals import told
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Picture, Section, Table
from sysout_jax.reports.report import write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.words import change, digits, in_layers, listed, number, percent, plural

NAME = "compression"


def write_compression_report(
    out: Path,
    results: Sequence[Compression],
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report of one or several models into `out`; `settings` come from `provenance.run_settings`. Returns all paths."""
    drawn: dict[str, Figure] = {"perplexity": figures.perplexity(results)}
    sections = [
        Section("How to read this page", tuple(_reading(results))),
        Section(
            "Perplexity",
            (
                Picture("perplexity", figures.perplexity_sentence(results)),
                Table(*_rows(results, full=True), _note(results[0].protocol.windows)),
            ),
        ),
    ]
    names = short_names([r.model for r in results])
    for i, (name, result) in enumerate(zip(names, results, strict=True)):
        suffix = f"-{i + 1}" if len(results) > 1 else ""
        if result.attributions:
            drawn[f"layers{suffix}"] = figures.layers(result)
            sections.append(_layer_section(result, name, f"layers{suffix}"))
        if any(a.kept for a in result.attributions):
            drawn[f"kept{suffix}"] = figures.kept(result)
            sections.append(_kept_section(result, name, f"kept{suffix}"))
    return write_report(
        out,
        NAME,
        f"Compression: {', '.join(names)}",
        headline=" ".join(verdict(result) for result in results),
        payload={"models": [result.to_dict() for result in results]},
        sections=[*sections, Section("Definitions", (_definitions(results[0]),))],
        figures=drawn,
        settings=settings,
        expectation=expectation,
    )


def verdict(result: Compression) -> str:
    """One sentence: full precision, and the two methods of the paper where they were run."""
    full = result.outcomes[0].perplexity.value
    shown = [o for o in result.outcomes[1:] if o.method in ("w8_tensor", "prune_matrix")]
    shown = shown or list(result.outcomes[1:3])
    parts = [f"{digits(o.perplexity.value)} with {o.label}" for o in shown]
    where = f"{plural(result.protocol.windows, 'window')} of {result.protocol.length:,} tokens"
    return f"{result.model}: perplexity {', '.join([f'{digits(full)} in full precision', *parts])} on {where}."


def summary(results: Sequence[Compression]) -> str:
    """Perplexities, and what keeping outliers gives, for the terminal."""
    lines = [
        f"Protocol  {results[0].protocol.sentence()}",
        text_table(*_rows(results, full=len(results) == 1)),
    ]
    for name, result in zip(short_names([r.model for r in results]), results, strict=True):
        kept = [(a, k) for a in result.attributions for k in a.kept]
        if kept:
            outliers = _outliers(result)
            lines.append(f"Kept in full precision, {name} ({outliers}):")
            rows = [
                (a.label, figures.KEPT_LABELS[k.what], f"{k.weights:,}", digits(k.perplexity.value),
                 figures.draws(k.control))
                for a, k in kept
            ]  # fmt: skip
            lines.append(
                text_table(("method", "kept", "weights", "perplexity", "random others"), rows)
            )
        lines += _notes(result)
    return "\n".join(lines)


def _notes(result: Compression) -> list[str]:
    """What is not finite in full precision and what methods add to it, and the notes."""
    made = [
        f"{o.label} ({o.nonfinite:,})"
        for o in result.outcomes
        if o.nonfinite > result.nonfinite.h.total
    ]
    lines = [f"{result.model}: {line}" for line in remarks(result.nonfinite)]
    if made:
        lines.append(f"Methods under which elements of h are NaN or inf: {listed(made)}.")
    return [*lines, *result.notes]


def _outcome(result: Compression, label: str) -> Outcome | None:
    return next((o for o in result.outcomes if o.label == label), None)


def _rows(
    results: Sequence[Compression], full: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Methods × models; `full` with intervals and the error of h, which a terminal has no room for with several models."""
    names = short_names([r.model for r in results]) if len(results) > 1 else ["perplexity"]
    header = ["method"]
    for name in names:
        header += [name, "change", *(["error of h"] if full else [])]

    def cells(outcome: Outcome | None) -> tuple[str, ...]:
        if outcome is None:
            return ("–",) * (3 if full else 2)
        perplexity = outcome.perplexity
        interval = f" [{digits(perplexity.low)}, {digits(perplexity.high)}]" if full else ""
        value = digits(perplexity.value) + (interval if np.isfinite(perplexity.low) else "")
        if outcome.method == "full":
            return (value, *("–",) * (2 if full else 1))
        return (value, change(outcome.ratio.value), *([_error(outcome.error)] if full else []))

    rows = (
        (label, *(cell for r in results for cell in cells(_outcome(r, label))))
        for label in dict.fromkeys(o.label for r in results for o in r.outcomes)
    )
    return tuple(header), tuple(rows)


def _error(value: float) -> str:
    """A relative error as per cent, two digits below a hundred."""
    if not np.isfinite(value):
        return number(value)
    return f"{100 * value:.2g}%" if value < 0.995 else f"{100 * value:,.0f}%"


def _note(windows: int) -> str:
    return (
        f"In brackets: {told(windows, 'windows')}. Change: against full precision, same windows. Error of h: "
        "‖h' − h‖ / ‖h‖ after the last layer, mean over tokens."
    )


def _outliers(result: Compression) -> str:
    outliers = result.outliers
    if outliers is None:
        return "no outlier"
    kind = (
        "outliers"
        if outliers.found
        else f"no outlier at τ = {outliers.tau:g}; strongest candidates, ratio over {number(outliers.level)},"
    )
    channels = listed(outliers.labels) or "none"
    return f"{kind} born {in_layers(outliers.layers)}: dims d* {listed(outliers.dims)}, channels c* {channels}, at {plural(outliers.tokens, 'token')}"


def _reading(results: Sequence[Compression]) -> list[str]:
    first = results[0]
    lines = [
        f"Protocol: {first.protocol.sentence()}.",
        f"Compressed are the weights of all linear layers of all blocks"
        f"{', the embeddings and the head' if first.settings.embeddings else '; embeddings, head,'} "
        f"{'but not' if first.settings.embeddings else ''} biases and norms{'' if first.settings.embeddings else ' stay in full precision'}. "
        "Quantised arithmetic is simulated: values are rounded to the integer grid and multiplied as floats.",
        f"Static ranges and SmoothQuant were calibrated on {first.calibration}."
        if first.calibration != "not needed"
        else "Nothing needed calibration.",
        "Layers are counted from 1 on this page and from 0 in compression.json; dims, channels, sequences and tokens from 0 everywhere.",
    ]
    if len(results) > 1:
        lines.append(
            "Each model reads the text with its own tokenizer; perplexities of different tokenizers do not compare, their ratios do."
        )
    for r in results:
        share = r.compressed_parameters / r.parameters
        lines.append(
            f"{r.model}: {r.parameters / 1e6:,.2f} M parameters without position embeddings, {percent(share)} of them compressed."
        )
        lines += _notes(r)
    return lines


def _layer_section(result: Compression, name: str, figure: str) -> Section:
    def rows(attribution: Attribution) -> tuple[tuple[str | int, ...], ...]:
        return tuple(
            (
                layer + 1,
                digits(attribution.perplexity_alone[layer]),
                _error(attribution.own.relative[layer]),
                _error(attribution.accumulated.relative[layer]),
                percent(attribution.own.tokens_share[layer]),
                percent(attribution.own.dims_share[layer]),
            )
            for layer in range(result.num_layers)
        )

    header = (
        "layer", "perplexity, only this layer", "own error of h", "accumulated", "at outlier tokens", "in outlier dims",
    )  # fmt: skip
    tables = [
        Table(header, rows(attribution), f"{attribution.label}; all layers compressed: perplexity {digits(attribution.perplexity)}.")
        for attribution in result.attributions
    ]  # fmt: skip
    picture = Picture(figure, figures.layers_sentence(result))
    return Section(
        f"Error per layer: {name}", (f"{_capital(_outliers(result))}.", picture, *tables)
    )


def _kept_section(result: Compression, name: str, figure: str) -> Section:
    rows = tuple(
        (
            attribution.label,
            figures.KEPT_LABELS[keep.what],
            keep.weights,
            digits(keep.perplexity.value),
            figures.draws(keep.control),
            _error(keep.error),
            _error(keep.control_error),
        )
        for attribution in result.attributions
        for keep in attribution.kept
    )
    header = (
        "method", "kept in full precision", "weights", "perplexity", "random others", "error of h", "random others",
    )  # fmt: skip
    nothing = "; ".join(
        f"{a.label} {digits(a.perplexity)}, error {_error(a.error)}" for a in result.attributions
    )
    note = (
        f"Nothing kept: {nothing}. Full precision: {digits(result.outcomes[0].perplexity.value)}."
    )
    picture = Picture(figure, figures.kept_sentence(result))
    return Section(f"Outliers in full precision: {name}", (picture, Table(header, rows, note)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _definitions(result: Compression) -> Table:
    settings = result.settings
    rows = [
        ("perplexity", "exp of the mean negative log-likelihood of the counted tokens, summed in float64"),
        ("W8, W4", "AbsMax: weights rounded to a symmetric grid of 8 or 4 bits, scale = max|w| / 127 or 7, of a matrix (per tensor), of the "
         f"weights of an output channel, or of {settings.group_size} consecutive inputs of one (per group)"),
        ("MXFP4, NVFP4", "weights as four-bit floats (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) with a scale for each 32 consecutive inputs of an output "
         "channel, a power of two, or for each 16, an eight-bit float (E4M3) times one float32 of the matrix"),
        ("W8A8", f"W8 per channel, and the inputs of the linear layers rounded to {INPUT_BITS} bits; static: one scale from the largest calibrated |x| "
         "of the tensor; per token: a scale from each token's largest |x|"),
        *((f"{name} left out", f"{rule} enter no static scale of that row; their inputs are clipped to it") for name, rule in LEFT_OUT.items()),
        ("KV8, KV4, KV2", "keys and values rounded to 8, 4 or 2 bits, one scale each for a sequence and layer (per tensor), or keys per channel over the tokens and values "
         "per token; first kept: those of the first token in full precision and in no scale"),
        ("outlier weights kept", "the weights W_down[d*, c*] of the birth layers in full precision and in no scale; in the scale: they still set the step of their group"),
        ("with embeddings", "embeddings and head are compressed too; rows that do not say so leave them in full precision"),
        ("SmoothQuant", f"Xiao et al. 2023, α = {settings.alpha:g}: input channels divided by max|X|^α / max|W|^(1−α), folded into the norms before "
         "q, k, v and gate, up; “+ down” folds into up for the down projection too (LLaMA only); then W8A8"),
        ("pruned", "the smallest |w| set to zero, the given share of every matrix, or of all matrices together"),
        ("only this layer", "all other layers in full precision"),
        ("own error", "‖h' − h‖ / ‖h‖ after a compressed layer that reads the exact input, mean over tokens; accumulated: all layers compressed"),
        *((f"kept: {figures.KEPT_LABELS[name]}", f"{rule}, at their original values and left out of every scale") for name, rule in KEEPS.items()),
        ("random others", "as many random columns, rows or weights of the same matrices kept instead; perplexity: the median of the seeds, from the least to the most; error: their mean"),
    ]  # fmt: skip
    run = {METHODS[o.method].prune for o in result.outcomes[1:]}
    if run <= {""}:
        rows = [row for row in rows if row[0] != "pruned"]
    return Table(("term", "rule"), tuple(rows))
