"""What reports measure, under the names that `published.py` uses."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sysout_jax.analyses.census.results import Census
from sysout_jax.analyses.compression.results import Compression
from sysout_jax.analyses.consistency.measure import ROWS, Consistency
from sysout_jax.analyses.intervene.measure import Interventions
from sysout_jax.analyses.intervene.runs import OUTLIERS
from sysout_jax.analyses.length.measure import ByLength
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.analyses.positions.measure import Positions
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.statistics.collect import Stats

SINK_RATE_LENGTH = 64  # Gu et al. measure sinks in sequences of this length


def measured_by_statistics(stats: Stats, tau: float, token_text: TokenText) -> dict[str, Any]:
    """What `collect` alone says of outliers at τ; those of a birth are there only when there is an outlier in h."""
    down = stats.weights.modules.index("down")
    others = np.delete(stats.weights.column_ratio, down, axis=1)
    tokens = stats.h.outlier_tokens(tau)
    layers = np.flatnonzero(tokens.any(axis=(1, 2)))
    quantities: dict[str, Any] = {
        "outliers in h": bool(len(layers)),
        "birth layer, from 0": int(layers[0]) if len(layers) else "none",
        "largest |h|": float(stats.h.top_values[:, 0].max()),
        "largest |h| of all sequences": stats.h.top_values[:, 0],
        "three largest |h|": stats.h.sequence_top.mean(axis=1),
        "tokens with an outlier in h": tokens.sum(axis=(1, 2)),
        "largest |x_down|": stats.x_down.sequence_top[..., 0].mean(axis=1),
        "channels of the largest |x_down|": [
            tuple(int(c) for c in row) for row in stats.x_down.top_channels
        ],
        "extremal ratio of W_down": stats.weights.column_ratio[:, down],
        "extremal ratio of the other matrices": others.max(axis=1),
    }
    if len(layers):
        for quantity, place in (
            ("h dims", stats.h),
            ("x_down channels of the birth", stats.x_down),
        ):
            flagged = np.flatnonzero(place.outlier_channels(tau)[layers[0]])
            quantities[quantity] = tuple(int(c) for c in flagged)
        quantities |= _tokens(np.asarray(tokens.any(axis=0)), token_text)
    if stats.tokens.shape[1] == SINK_RATE_LENGTH:
        quantities["sink rate at T 64 (%)"] = 100 * float(stats.attention.sink_rate.mean())
    return quantities


def measured_by_lifecycle(report: Lifecycle, token_text: TokenText) -> dict[str, Any]:
    """Quantities of a lifecycle report: the channels are those that carry the birth, whether or not they are outliers."""
    quantities = measured_by_statistics(report.stats, report.tau, token_text)
    if not report.found:
        return quantities
    birth = report.birth
    return (
        quantities
        | {
            "h dims": birth.dims,
            "x_down channels of the birth": birth.channels,
            "birth weights (layer from 0, row, column)": tuple(
                (event.layer, dim, channel.index)
                for event in birth.events
                for dim in event.dims
                for channel in event.channels
            ),
        }
        | _attention(report.spread.mass)
    )


def measured_by_positions(report: Positions, token_text: TokenText) -> dict[str, Any]:
    """Quantities of a positions report."""
    quantities = measured_by_statistics(report.stats, report.tau, token_text)
    return quantities | (_attention(report.keys.share) if report.h.found else {})


def measured_by_consistency(report: Consistency) -> dict[str, Any]:
    """Quantities of a consistency report at its τ: the rows of Table 1, in %; NaN where nothing can be compared."""
    quantities: dict[str, Any] = {"outliers in h": report.ratios["h"] > report.tau}
    averages = report.at_tau.averages("overlap", report.seed)
    for row, average in zip(ROWS, averages, strict=True):
        if row.of_paper:
            first = row.first.removesuffix(" columns").removesuffix(" rows")
            name = f"consistency {first}, {row.second} by {row.dimension} (%)"
            quantities[name] = 100 * average.value
    return quantities


def measured_by_length(report: ByLength, token_text: TokenText) -> dict[str, Any]:
    """Quantities of a length report: those of the longest beginning without BOS."""
    reading = [point for point in report.sweep if not point.bos][-1].reading
    over_LxNxT = reading.ratio > report.tau
    layers = np.flatnonzero(over_LxNxT.any(axis=(1, 2)))
    quantities: dict[str, Any] = {
        "outliers in h": bool(len(layers)),
        "birth layer, from 0": int(layers[0]) if len(layers) else "none",
        "tokens with an outlier in h": over_LxNxT.sum(axis=(1, 2)),
    }
    ever_NxT = np.asarray(over_LxNxT.any(axis=0))
    return quantities | (_tokens(ever_NxT, token_text) if len(layers) else {})


def _attention(mass_LxH: np.ndarray) -> dict[str, Any]:
    return {
        "attention on outlier tokens": mass_LxH.mean(axis=1),
        "attention on outlier tokens, least of a head": mass_LxH.min(axis=1),
        "attention on outlier tokens, most of a head": mass_LxH.max(axis=1),
    }


def _tokens(ever_NxT: np.ndarray, token_text: TokenText) -> dict[str, Any]:
    places = [(int(n), int(t)) for n, t in np.argwhere(ever_NxT)]
    texts = Counter("first" if t == 0 else token_text(n, t) for n, t in places)
    share = {text: 100 * count / len(places) for text, count in texts.items()}
    return {
        "positions of outlier tokens": tuple(sorted({t for _, t in places})),
        "outlier tokens beyond the first position": tuple(sorted(set(texts) - {"first"})),
        "outlier tokens that are first (%)": share.get("first", 0.0),
        "outlier tokens that are “.” (%)": share.get(".", 0.0),
        "outlier tokens that are “_” (%)": share.get("_", 0.0),
    }


def measured_by_interventions(result: Interventions) -> dict[str, Any]:
    """Quantities of an interventions report; edits in the output of the birth layers, as Sun et al. made them."""
    edits = {o.what: o for o in result.outcomes if o.where == "birth" and o.target == OUTLIERS}
    quantities: dict[str, Any] = {
        "outliers in h": result.found,
        "perplexity": result.baseline.perplexity.value,
    }
    if result.found:
        quantities |= {"birth layer, from 0": result.birth_layers[0], "h dims": result.dims}
        if "mean" in edits:
            quantities["perplexity, outliers to the mean"] = edits["mean"].perplexity.value
        if "zero" in edits:
            quantities["perplexity ratio, outliers to zero"] = edits["zero"].ratio.value
    return quantities


def measured_by_compression(result: Compression) -> dict[str, Any]:
    """Quantities of a compression report; they are those of Table 3 where the text is WikiText-2."""
    text = "perplexity on WikiText-2"
    quantities: dict[str, Any] = {"parameters (millions)": result.parameters / 1e6}
    for outcome in result.outcomes:
        if outcome.method == "full":
            quantities[text] = outcome.perplexity.value
            quantities["perplexity"] = outcome.perplexity.value
        if outcome.method == "w8_tensor":
            quantities[f"{text}, AbsMax W8"] = outcome.perplexity.value
        if outcome.method == "prune_matrix" and outcome.sparsity == 0.5:
            quantities[f"{text}, 50 % pruned"] = outcome.perplexity.value
    return quantities


def measured_by_census(result: Census) -> dict[str, Any]:
    """Quantities of a census report: where its writers are, and what each whole row does to the loss."""
    rows = {
        (entry.writer.layer, entry.writer.row): entry.effect("row").loss_change.value
        for entry in result.entries
    }
    hurts_most = max(rows, key=lambda row: np.nan_to_num(rows[row], nan=np.inf))
    return {
        "perplexity": result.perplexity.value,
        "strongest writers (layer from 0, row, column)": tuple(
            entry.writer.place for entry in result.entries
        ),
        "row that raises the loss most (layer from 0, row)": hurts_most,
        **{
            f"loss with row {row} of layer {layer} (from 0) zeroed (%)": 100 * change
            for (layer, row), change in rows.items()
        },
    }
