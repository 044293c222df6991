"""The page and the terminal summary of `analyze.positions`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.positions.figures import POSITIONS
from sysout_jax.analyses.positions.measure import Place, Positions, strongest
from sysout_jax.analyses.positions.token_classes import RULES, groups
from sysout_jax.figures.spec import draw_figures
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.definitions import (
    CANDIDATE_SHARE,
    CODE_SHARE,
    TAUS,
    even_attention_passes,
    reachable,
)
from sysout_jax.outliers.tokens import INITIAL, TokenClasses, TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import (
    ATTENTION_ON_THEM,
    counting,
    expert_terms,
    figure_sections,
    write_report,
)
from sysout_jax.reports.terminal import ran_over
from sysout_jax.words import in_layers, joined, layer_ranges, listed, named, number, percent

NAME = "positions"
MAX_HEADS = 20


def write_positions_report(
    out: Path,
    report: Positions,
    classes: TokenClasses,
    token_text: TokenText,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    tables = {
        "activations": _flags(report),
        "tokens": _tokens(report),
        "channels": _channels(report),
        "close-ups": _elements(report, token_text),
        "weights": _weights(report),
        "heads": _heads(report),
    }
    return write_report(
        out,
        NAME,
        f"Positions of outliers: {report.model}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=[
            Section("How to read this page", (counting(NAME), *_remarks(report))),
            *figure_sections(POSITIONS, report, token_text, tables),
            Section("Definitions", (_definitions(report, classes),)),
        ],
        figures=draw_figures(POSITIONS, report, token_text),
        settings=settings,
        expectation=expectation,
    )


def positions_summary(report: Positions, token_text: TokenText) -> str:
    """One terminal screen."""
    lines = [verdict(report), *remarks(report.stats.nonfinite)]
    for name in ("h", "x_down"):
        place, ratio = getattr(report, name), getattr(report.stats, name).channel_ratio
        unit = "dim" if name == "h" else "channel"
        flagged = strongest(ratio.max(axis=0), place.channels.any(axis=0), len(ratio[0]))
        labels = [getattr(report.stats, name).label(c) for c in flagged]
        what = "" if place.found else f"  candidates over {number(place.level)} times the mean:"
        lines.append(
            f"{name:<8}{what} layers {layer_ranges(place.layers) or 'none'}; {named(unit, labels, 6) if labels else f'no {unit}s'}"
        )
        lines.append(f"        tokens: {_shares(report, place)}")
        flags = zip(TAUS, getattr(report.stats, name).counts.sum(axis=0), strict=True)
        lines.append(
            f"        elements flagged: {', '.join(f'{n:,} at {tau:g}' for tau, n in flags)}"
        )
    parts = [f"{m.module} of layer {m.layer + 1} ({number(m.ratio)}, column {m.label})" for m in report.matrices]  # fmt: skip
    lines.append(f"weights  largest extremal ratios: {joined(parts)}")
    keys, T = report.keys, report.length
    layer = int(keys.top[:, 0].argmax())
    lines += [
        f"keys     {RULES[keys.rule]}: {in_layers(keys.layers)}{'; so short a text passes it with even attention' if even_attention_passes(T) else ''}"
        if keys.layers
        else "keys     no attention",
        f"        tokens: {_class_shares(report, keys.tokens.once)}",
        f"        largest share of a key: {percent(keys.top[layer, 0] / T)} in layer {layer + 1}, median {percent(keys.median[layer] / T)}",
    ]
    share = finite_or(keys.share)
    layer = int(share.mean(axis=1).argmax())
    lines.append(
        f"heads    attention on the tokens of h is largest in layer {layer + 1}: heads from {percent(share[layer].min())} to "
        f"{percent(share[layer].max())}, mean {percent(share[layer].mean())}; even attention would give them {percent(keys.even[layer], 1)}"
    )
    return "\n".join(lines)


def verdict(report: Positions) -> str:
    """One sentence: are there outliers, and in which layers."""
    over = ran_over(report.num_sequences, report.length)
    if report.stats.nonfinite.everything:
        return nothing_measured(report.model, over)
    if not report.found:
        return (
            f"{report.model}: no activation outlier at τ = {report.tau:g} in {over}; the largest ratios are "
            f"{number(report.stats.h.ratio.max())} in h and {number(report.stats.x_down.ratio.max())} in x_down."
        )
    places = [
        f"{name} {in_layers(place.layers)}"
        for name, place in (("h", report.h), ("x_down", report.x_down))
        if place.found
    ]
    return f"{report.model}: activation outliers at τ = {report.tau:g} in {joined(places)} (of {report.num_layers}), in {over}."


def _shares(report: Positions, place: Place) -> str:
    texts = listed(
        (
            f"“{text}”{' (initial)' if kind == INITIAL else ''} ×{count}"
            for text, kind, count in place.tokens.texts
        ),
        4,
    )
    return f"{_class_shares(report, place.tokens.once)}: {texts or 'none'}"


def _class_shares(report: Positions, counts: np.ndarray) -> str:
    total = max(int(counts.sum()), 1)
    pairs = zip(report.classes, counts, strict=True)
    return ", ".join(f"{percent(count / total)} {name}" for name, count in pairs)


def _remarks(report: Positions) -> Iterable[str]:
    yield from remarks(report.stats.nonfinite)
    for name, place in (("h", report.h), ("x_down", report.x_down)):
        if not place.found and place.layers:
            yield (
                f"No outlier of {name} at τ = {report.tau:g}. For orientation the page shows the elements over "
                f"{number(place.level)} times the mean instead, {CANDIDATE_SHARE:.0%} of the largest ratio; they are no outliers."
            )


def _flags(report: Positions) -> Table | str:
    stats = report.stats
    columns = {f"{place} τ={tau:g}": getattr(stats, place).counts[:, i] for place in ("h", "x_down") for i, tau in enumerate(TAUS)}  # fmt: skip
    columns |= {"massive": stats.h.massive}
    columns |= {
        f"keys τ={tau:g}": stats.attention.counts[:, i]
        for i, tau in enumerate(TAUS)
        if reachable(tau, report.length)
    }
    rows = tuple(
        (layer + 1, *(int(column[layer]) for column in columns.values()))
        for layer in range(report.num_layers)
    )
    flagged = tuple(row for row in rows if any(row[1:]))
    if not flagged:
        return f"Nothing is flagged at any of τ = {', '.join(f'{tau:g}' for tau in TAUS)}, and no element is a massive activation."
    note = "Elements of h and x_down, and keys of single heads, flagged in all sequences together; other layers have none."
    if far := [f"{tau:g}" for tau in TAUS if not reachable(tau, report.length)]:
        note += f" Of {report.length} keys none can take {joined(far)} times the mean."
    return Table(("layer", *columns), flagged, note)


def _tokens(report: Positions) -> Table:
    rows = [
        (name, f"“{text}”", kind, count)
        for name, counts in groups(report).items()
        for text, kind, count in counts.texts
    ]
    header = ("outliers of", "token", "class", "times")
    return Table(
        header, tuple(rows), "Each place of a text counts once, whatever the number of layers."
    )


def _channels(report: Positions) -> Table:
    rows = []
    for name, place in (("h", report.h), ("x_down", report.x_down)):
        ratio_LxC = getattr(report.stats, name).channel_ratio
        for layer in place.layers:
            marked = strongest(ratio_LxC[layer], place.channels[layer], len(ratio_LxC[layer]))
            label = getattr(report.stats, name).label
            shown = listed((f"{label(c)} ({number(ratio_LxC[layer][c])})" for c in marked), 5)
            rows.append((name, layer + 1, len(marked), shown))
    header = ("place", "layer", "channels", "strongest (largest ratio)")
    return Table(header, tuple(rows))


def _elements(report: Positions, token_text: TokenText) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for name, place in (("h", report.h), ("x_down", report.x_down)):
        stats = getattr(report.stats, name)
        for layer in place.close_ups:
            for k in range(min(5, stats.top_values.shape[1])):
                n, t = int(stats.top_sequences[layer, k]), int(stats.top_tokens[layer, k])
                value = stats.top_signs[layer, k] * stats.top_values[layer, k]
                mean = stats.sequence_mean[layer, n]
                ratio = number(abs(value) / mean) if mean > 0 else "n/a"
                place_of = (
                    n,
                    t,
                    f"“{token_text(n, t)}”",
                    stats.label(stats.top_channels[layer, k]),
                )
                rows.append((name, layer + 1, *place_of, number(value), ratio))
    header = ("place", "layer", "sequence", "token", "text", "channel", "value", "ratio")
    return Table(header, tuple(rows), "The five largest elements of each layer drawn.")


def _weights(report: Positions) -> Table:
    weights = report.stats.weights
    rows: list[tuple[str | int, ...]] = []
    for m, module in enumerate(weights.modules):
        layer = int(weights.column_ratio[:, m].argmax())
        row = int(weights.row_ratio[:, m].argmax())
        counts = (int(n) for n in weights.counts[:, m].sum(axis=0))
        column = f"{weights.column[layer, m]} of layer {layer + 1}"
        rows.append(
            (module, number(weights.column_ratio[layer, m]), column,
             number(weights.row_ratio[row, m]), f"{weights.row[row, m]} of layer {row + 1}", *counts)
        )  # fmt: skip
    header = ("matrix", "extremal ratio", "column", "largest |w| / row mean", "row", *(f"τ={tau:g}" for tau in TAUS))  # fmt: skip
    return Table(
        header,
        tuple(rows),
        "Weights flagged in all layers together, each against the mean of its row.",
    )


def _heads(report: Positions) -> Table | None:
    keys = report.keys
    share = finite_or(keys.share)
    order = np.argsort(-share.ravel(), kind="stable")[:MAX_HEADS]
    rows: list[tuple[str | int, ...]] = []
    for i in order:
        layer, head = (int(x) for x in np.unravel_index(i, share.shape))
        values = (keys.share, keys.share_low, keys.share_high)
        shares = (percent(v[layer, head]) for v in values)
        rows.append((layer + 1, head, *shares, percent(keys.even[layer], 1)))
    header = ("layer", "head", "mean", "smallest sequence", "largest sequence", "even attention")
    note = f"Attention on the tokens of h, the {len(rows)} strongest heads of {share.size}."
    return Table(header, tuple(rows), note)


def _definitions(report: Positions, classes: TokenClasses) -> Table:
    rows = (
        ("activation outlier", f"|h| > τ · mean|h| of its sequence, τ = {report.tau:g}; x_down alike"),
        ("extremal ratio", "max|w| / mean|w| of a column; of a matrix, the largest one"),
        ("attention outlier, paper", "a key whose column sum in some head exceeds τ times the mean column sum of that head"),
        ("attention outlier, code", f"a key whose column sum, mean over heads, is at least {CODE_SHARE:g} · T"),
        ("attention on outlier tokens", ATTENTION_ON_THEM),
        ("even attention", "every query gives all tokens that it sees the same; over the same queries"),
        ("initial", "position 0 of a sequence, or BOS"),
        *((name, " ".join(f"“{text}”" for text in texts).replace("\n", "\\n")) for name, texts in classes.lists.items()),
        *expert_terms(report.stats.x_down.expert_width),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
