"""What a reader can move on the lifecycle's page: its text token by token, its heads, and curves over layers."""

from __future__ import annotations

import numpy as np

from sysout_jax.analyses.lifecycle.figures.layers import attention_mass
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.interactive import Curves, Heads, Measure, TokenView
from sysout_jax.reports.page import Section


def explore(report: Lifecycle, token_text: TokenText) -> Section:
    """The section, for every report."""
    stats = report.stats
    L, N, T = stats.h.token_max.shape
    reach_Lx1x1 = stats.attention.reach[:, None, None]
    ratio = rules.ratio(stats.h.token_max, stats.h.sequence_mean[..., None])
    measures = [
        Measure("largest |h| over its mean", np.asarray(ratio), " times the mean"),
        Measure("attention received", 100 * rules.sink_scores(stats.attention.head_mean, reach_Lx1x1), "% of each query that can see it"),
    ]  # fmt: skip
    if "values" in stats.gathered:
        measures.append(
            Measure("length of the values ‖v‖", stats.values.over_mean, " times the mean")
        )
    share, what = attention_mass(report)
    heads = Heads(
        what,
        share,
        100 * rules.sink_scores(stats.attention.cumulative, reach_Lx1x1),
        "% of each query that can see it, mean over sequences",
    )
    texts = [[token_text(n, t) for t in range(T)] for n in range(N)]
    view = TokenView(texts, tuple(measures), heads, start=report.largest_h.layer)
    return Section(
        "The text, token by token",
        (
            "Every token is coloured, dark for much. Move the layer and see where the outlier appears and goes.",
            view,
            Curves(
                "Largest |h| and |x_down| over their means, by layer",
                (
                    ("|h|", stats.h.ratio),
                    ("|x_down|", stats.x_down.ratio),
                    ("threshold τ", np.full(L, report.tau)),
                ),
            ),
            Curves(
                f"Share of attention on {what}, by layer",
                (
                    ("most of a head", share.max(axis=1)),
                    ("mean of heads", share.mean(axis=1)),
                    ("least of a head", share.min(axis=1)),
                ),
                linear=True,
            ),
        ),
    )
