"""`so.collect`: one streaming pass that gathers weight, activation and attention statistics of every layer."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from sysout_jax.calls import check_arguments
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.models.spec import MlpSpec
from sysout_jax.nonfinite import Nonfinite
from sysout_jax.outliers.definitions import TAU, TAUS, exceeds
from sysout_jax.statistics.activations import (
    ActivationStats,
    join_activations,
    reduce_activations,
    reduce_x_down,
)
from sysout_jax.statistics.attention import AttentionStats, join_attention, reduce_attention
from sysout_jax.statistics.weights import WeightStats, join_weights, reduce_weights
from sysout_jax.storage.serialise import plain

TOP = 16


@dataclass(frozen=True)
class Stats:
    """Everything one pass over `tokens` (N, T) tells about a model."""

    tokens: np.ndarray  # (N, T)
    tau: float
    h: ActivationStats
    x_down: ActivationStats
    attention: AttentionStats
    weights: WeightStats
    nonfinite: Nonfinite

    def to_dict(self) -> dict:
        """JSON-ready numbers of every layer, without what has one value per token or sequence."""
        place = """top_values top_signs top_sequences top_tokens top_channels mean median ratio massive
        neuron_kurtosis excess_kurtosis nonfinite first_nonfinite""".split()
        attention = "sink_rate outlier_keys overlap overlap_code iou iou_code nonfinite".split()
        weights = "modules column_ratio column row_ratio row nonfinite".split()
        result = {
            "h": {name: getattr(self.h, name) for name in place},
            "x_down": {name: getattr(self.x_down, name) for name in place},
            "attention": {name: getattr(self.attention, name) for name in attention},
            "weights": {name: getattr(self.weights, name) for name in weights},
        }
        share = self.attention.cumulative[:, :, 0] / self.tokens.shape[1]
        counts = {f"{tau:g}": self.weights.counts[..., i] for i, tau in enumerate(TAUS)}
        result["attention"] |= {
            "first_token_share": share,
            "code_outlier_tokens": self.attention.code_outlier_tokens.sum(axis=(1, 2)),
        }
        result["weights"] |= {"counts": counts}
        return plain(result)


def collect(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
) -> Stats:
    """Statistics of all layers over sequences `tokens` (N, T), one layer at a time; see `Stats` for what they are.

    `tau` is the threshold at which attention outliers and overlaps are evaluated; activations can be asked at any threshold
    afterwards. Raises InputError for bad tokens and bad τ.
    """
    check_arguments(lm, tau=tau)
    stream = Stream(lm, tokens)
    h, x_down, attention, weights = [], [], [], []
    observes = [ObserveStatistics(lm.config.layer(l).mlp) for l in range(lm.num_layers)]
    for layer, params, seen in stream.layers(observes):
        outlier_tokens = exceeds(seen["h"]["token_max"], seen["h"]["mean"][:, None], tau)
        h.append(seen["h"])
        x_down.append(seen["x_down"])
        attention.append(reduce_attention(seen["sums"], outlier_tokens, tau))
        with lm.computing():
            weights.append(jax.device_get(reduce_weights(lm.config.layer(layer), params)))
    modules = tuple(matrix.name for matrix in lm.config.layer(0).matrices)
    return Stats(
        tokens=stream.tokens,
        tau=tau,
        h=join_activations(h, TOP),
        x_down=join_activations(x_down, TOP, lm.config.layer(0).mlp.expert_width),
        attention=join_attention(attention),
        weights=join_weights(weights, modules),
        nonfinite=stream.nonfinite(),
    )


@dataclass(frozen=True)
class ObserveStatistics:
    """The `Observe` of `collect`: everything it keeps of one layer and sequence."""

    mlp: MlpSpec

    def __call__(self, x_in, taps, extra) -> dict:
        return {
            "h": reduce_activations(taps["h"], TOP),
            "x_down": reduce_x_down(self.mlp, taps, TOP),
            "sums": taps["attn_sums"],
        }
