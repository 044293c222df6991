"""What reports measure, under the names that `published.py` uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from sysout_jax.compress.results import Compression
from sysout_jax.interventions import Interventions
from sysout_jax.outliers.edited_runs import OUTLIERS
from sysout_jax.outliers.results import Lifecycle

TokenText = Callable[[int, int], str]
SINK_RATE_LENGTH = 64  # Gu et al. measure sinks in sequences of this length


def measured_by_lifecycle(report: Lifecycle, token_text: TokenText) -> dict[str, Any]:
    """Quantities of a lifecycle report; those of a birth are there only when an outlier was found at its τ."""
    stats, life = report.stats, report
    down = stats.weights.modules.index("down")
    others = np.delete(stats.weights.column_ratio, down, axis=1)
    tokens = stats.h.outlier_tokens(report.tau)
    found: dict[str, Any] = {
        "outliers in h": report.found,
        "birth layer, from 0": life.birth.layer if report.found else "none",
        "h dims": life.birth.dims,
        "x_down channels of the birth": life.birth.channels,
        "birth weights (layer from 0, row, column)": tuple(
            (event.layer, dim, channel.index)
            for event in life.birth.events
            for dim in event.dims
            for channel in event.channels
        ),
        "largest |h|": report.largest_h.value,
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
    if report.found:
        found |= _tokens(np.asarray(tokens.any(axis=0)), token_text)
        mass = report.spread.mass
        found |= {
            "attention on outlier tokens": mass.mean(axis=1),
            "attention on outlier tokens, least of a head": mass.min(axis=1),
            "attention on outlier tokens, most of a head": mass.max(axis=1),
        }
    if report.length == SINK_RATE_LENGTH:
        found["sink rate at T 64 (%)"] = 100 * float(stats.attention.sink_rate.mean())
    return found


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
    found: dict[str, Any] = {
        "outliers in h": result.found,
        "perplexity": result.baseline.perplexity.value,
    }
    if result.found:
        found |= {"birth layer, from 0": result.birth_layers[0], "h dims": result.dims}
        if "mean" in edits:
            found["perplexity, outliers to the mean"] = edits["mean"].perplexity.value
        if "zero" in edits:
            found["perplexity ratio, outliers to zero"] = edits["zero"].ratio.value
    return found


def measured_by_compression(result: Compression) -> dict[str, Any]:
    """Quantities of a compression report; they are those of Table 3 where the text is WikiText-2."""
    text = "perplexity on WikiText-2"
    found: dict[str, Any] = {"parameters (millions)": result.parameters / 1e6}
    for outcome in result.outcomes:
        if outcome.method == "full":
            found[text] = outcome.perplexity.value
            found["perplexity"] = outcome.perplexity.value
        if outcome.method == "w8_tensor":
            found[f"{text}, AbsMax W8"] = outcome.perplexity.value
        if outcome.method == "prune_matrix" and outcome.sparsity == 0.5:
            found[f"{text}, 50 % pruned"] = outcome.perplexity.value
    return found
