"""The page and the terminal table of `analyze.variants`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.variants.figures import VARIANTS
from sysout_jax.analyses.variants.measure import VariantProfile
from sysout_jax.analyses.variants.side_by_side import SideBySide
from sysout_jax.figures.spec import draw_figures
from sysout_jax.outliers.definitions import NEAR_ZERO
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import counting, figure_sections, write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.words import nats, number, percent

NAME = "variants"
HEADER = (
    "model", "attention", "largest |h| / mean", "layer", "first token", "sink rate", "largest logit", "near-zero updates",
    "implicit scale", "explicit scale", "validation loss",
)  # fmt: skip
_ON_TERMINAL = (0, 2, 3, 4, 6, 8, 9, 10)  # columns of HEADER, under shorter names
TERMINAL = ("model", "|h|/mean", "layer", "first tok.", "logit", "implicit", "explicit", "val loss")


def write_variants_report(out: Path, report: SideBySide, settings: dict[str, Any]) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns all paths."""
    text = report.texts[0]
    return write_report(
        out,
        NAME,
        f"Trained models side by side: {', '.join(report.names)}",
        headline=verdict(report),
        payload={
            "models": [
                {"name": name} | profile.to_dict()
                for name, profile in zip(report.names, report.profiles, strict=True)
            ]
        },
        sections=[
            Section("How to read this page", (*_reading(report), Table(HEADER, rows(report)))),
            *figure_sections(VARIANTS, report, text, {"scale": scale_table(report)}),
            Section("Definitions", (_definitions(report),)),
        ],
        figures=draw_figures(VARIANTS, report, text),
        settings=settings,
    )


def verdict(report: SideBySide) -> str:
    """Which models have outliers."""
    tau = report.profiles[0].tau
    kinds: dict[str, list[str]] = {}
    for name, p in _pairs(report):
        if p.stats.nonfinite.everything:
            kind = "nothing could be measured, all of h is NaN or inf"
        else:
            kind = "activation outliers" if p.stats.h.ratio.max() > p.tau else "none"
        kinds.setdefault(kind, []).append(name)
    parts = [f"{', '.join(names)}: {kind}" for kind, names in sorted(kinds.items())]
    return f"At τ = {tau:g}. " + ". ".join(parts) + "."


def summary(report: SideBySide) -> str:
    """For the terminal."""
    table = text_table(TERMINAL, [[row[i] for i in _ON_TERMINAL] for row in rows(report)])
    return "\n".join([verdict(report), *_nonfinite(report), table])


def _nonfinite(report: SideBySide) -> list[str]:
    return [f"{name}: {line}" for name, p in _pairs(report) for line in remarks(p.stats.nonfinite)]


def rows(report: SideBySide) -> tuple[tuple[str, ...], ...]:
    """One per model, under `HEADER`."""
    table = []
    for name, p in _pairs(report):
        ratio = p.stats.h.ratio
        explicit = "–" if p.explicit is None else number(_mean(p.explicit.heads))
        near_zero = "–" if p.near_zero is None else percent(float(p.near_zero.mean()))
        record = p.record
        loss = nats(record.val_loss[-1]) if record is not None and len(record.val_loss) else "–"
        table.append((
            name, p.attention, number(float(ratio.max())), str(int(ratio.argmax()) + 1), percent(float(p.first_token_share.max())),
            percent(float(p.sink_rate.mean())), number(float(p.logit_max.max())), near_zero,
            number(_mean(p.implicit.heads)), explicit, loss,
        ))  # fmt: skip
    return tuple(table)


def scale_table(report: SideBySide) -> Table:
    """Each model's scales layer by layer, at tokens that are no sinks and at sinks."""
    table: list[tuple[str | int, ...]] = []
    for name, p in _pairs(report):
        for kind, scale in (("implicit", p.implicit), ("explicit", p.explicit)):
            if scale is not None:
                for layer, values in enumerate(scale.quantiles):
                    columns = (_mean(scale.heads[layer]), *values, _mean(scale.at_sinks[layer]))
                    table.append((name, kind, layer + 1, *(number(float(v)) for v in columns)))
    header = ("model", "scale", "layer", "mean", "5 %", "median", "95 %", "mean at sinks")
    caption = "Over sequences, queries and heads. Quantiles and mean: queries that are no sinks."
    return Table(header, tuple(table), caption)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _pairs(report: SideBySide) -> list[tuple[str, VariantProfile]]:
    return list(zip(report.names, report.profiles, strict=True))


def _reading(report: SideBySide) -> list[str]:
    lines = [counting(NAME), *_nonfinite(report)]
    bare = [name for name, p in _pairs(report) if p.record is None]
    if bare:
        lines.append(
            f"No training record (metrics.jsonl) lies beside {', '.join(bare)}: the training figures leave "
            f"{'it' if len(bare) == 1 else 'them'} out."
        )
    if len({p.stats.tokens.tobytes() for p in report.profiles}) > 1:
        lines.append("Each model reads the text with its own tokenizer, so positions differ.")
    return lines


def _definitions(report: SideBySide) -> Table:
    tau = report.profiles[0].tau
    terms = (
        ("largest |h| / mean", "largest over layers and sequences of max|h| / mean|h| of a sequence"),
        ("first token", "mean attention on the first token, of the head that gives it most; sink rate: share of heads and sequences that give it more than 30 %"),
        ("logit", "q·k/√d over causal pairs, all heads and sequences"),
        ("near-zero updates", f"share of tokens whose attention output is shorter than {NEAR_ZERO:.0%} of the residual stream after it"),
        ("implicit scale", f"attention that sink tokens leave for others, Σ A_ij over keys j that are no sinks; sinks are the first token and those with an "
         f"outlier of h at τ = {tau:g} in any layer, the same in all layers; read at tokens that are no sinks"),
        ("explicit scale", "c(x) that the variant multiplies attention with: 2σ(xW + b) of context_scale, 1 − g of attention_bias, softmax1 and learned_sink, σ(x W_g) of gate"),
    )  # fmt: skip
    return Table(("term", "rule"), terms)
