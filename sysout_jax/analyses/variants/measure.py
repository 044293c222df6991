"""`so.variant_profile`: what an attention variant does to outliers, and how strongly attention is scaled, explicitly or by sinks.

Profiles of several trained models are read side by side (paper Figures 10, 11, 23, 24 and Appendix C).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sysout_jax.analyses.existence.measure import Existence, existence
from sysout_jax.attention import AttentionSpec, attend
from sysout_jax.attention.logits import logit_range
from sysout_jax.calls import check_arguments
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.definitions import TAU
from sysout_jax.printable import Told
from sysout_jax.statistics.attention import near_zero_updates
from sysout_jax.statistics.collect import Stats, at_hand
from sysout_jax.storage.serialise import plain
from sysout_jax.training.record import Record, training_record

QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Scale:
    """A scale on what attention adds, over sequences, queries and heads. NaN where there is no query to look at."""

    heads: np.ndarray  # (L, H) mean over queries that are no sink tokens
    quantiles: np.ndarray  # (L, 3) QUANTILES over those queries and all heads
    at_sinks: np.ndarray  # (L, H) mean over sink tokens


@dataclass(frozen=True)
class VariantProfile(Told):
    """One model. Layers, heads and positions are 0-based.

    The *implicit* scale of a query and head is the attention that sink tokens leave for others, Σ A_ij over keys j that are no sink
    tokens: one minus the attention on sinks where rows sum to one. Sink tokens are the first one and those that hold an activation
    outlier of h at τ in any layer; the implicit scale is read at the other tokens. The *explicit* scale is the tap `attn_scale`.
    """

    model: str
    attention: str  # the variant
    num_layers: int
    tau: float
    existence: Existence  # how h looks where it is largest, and statistics of all layers
    sinks: np.ndarray  # (N, T) bool
    logit_max: np.ndarray  # (L,) over all sequences and heads
    logit_min: np.ndarray  # (L,)
    near_zero: np.ndarray | None
    """(L,) share of tokens that attention moves by less than 1 % of the residual stream; None where a layer has no place between
    attention and MLP."""
    implicit: Scale
    explicit: Scale | None  # of variants with the tap
    record: Record | None  # of its training, where there is one

    @property
    def stats(self) -> Stats:
        return self.existence.stats

    @property
    def first_token_share(self) -> np.ndarray:
        """(L, H) mean attention on the first token."""
        return np.asarray(self.stats.attention.cumulative[:, :, 0] / self.stats.tokens.shape[1])

    @property
    def sink_rate(self) -> np.ndarray:
        """(L,) share of (sequence, head) that give the first token more than 30 % of their attention."""
        return self.stats.attention.sink_rate

    def to_dict(self) -> dict:
        """JSON-ready."""
        names = (
            "model attention num_layers tau logit_max logit_min near_zero implicit explicit".split()
        )
        result = {name: getattr(self, name) for name in names}
        h = self.stats.h
        result |= {
            "h": {
                "top3": h.sequence_top.mean(axis=1),
                "median": h.median,
                "mean": h.mean,
                "ratio": h.ratio,
                "excess_kurtosis": h.excess_kurtosis,
            },
            "x_down": {"ratio": self.stats.x_down.ratio},
            "first_token_share": self.first_token_share,
            "sink_rate": self.sink_rate,
            "sinks": [np.flatnonzero(row) for row in self.sinks],
            "nonfinite": self.stats.nonfinite,
            "existence": self.existence.to_dict(),
            "record": self.record,
        }
        return plain(result)


def variant_profile(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    stats: Stats | None = None,
) -> VariantProfile:
    """Profile of one model over `tokens` (N, T), in three streaming passes; no attention map is held.

    `stats` are those of `collect` on the same tokens when they are at hand. Finds the training record beside a checkpoint that `python -m train` wrote. Raises InputError for bad tokens and bad τ.
    """
    check_arguments(lm, tau=tau)
    stats = at_hand(stats, lm, tokens, tau)
    shape = existence(lm, tokens, tau, stats=stats)
    sinks_NxT = np.array(stats.h.outlier_tokens(tau).any(axis=0))
    sinks_NxT[:, 0] = True
    length = stats.tokens.shape[1]
    observes = [_Scales(lm.attention(l, length)) for l in range(lm.num_layers)]
    rows: dict[str, list] = {}
    stream = Stream(lm, stats.tokens)
    for _, _, seen in stream.layers(observes, [sinks_NxT] * lm.num_layers):
        for name, value in seen.items():
            rows.setdefault(name, []).append(_reduced(name, value, sinks_NxT))
    arrays = {name: np.stack(values) for name, values in rows.items() if name not in SCALES}
    implicit, explicit = (_joined(rows.get(name)) for name in SCALES)
    assert implicit is not None
    return VariantProfile(
        model=lm.name,
        attention=lm.config.attention,
        num_layers=lm.num_layers,
        tau=float(tau),
        existence=shape,
        sinks=sinks_NxT,
        implicit=implicit,
        explicit=explicit,
        record=training_record(lm.name),
        near_zero=arrays.pop("near_zero", None),
        **arrays,
    )


SCALES = ("implicit", "explicit")


def _reduced(name: str, value: np.ndarray, sinks_NxT: np.ndarray):
    if name == "logit_max":
        return value.max()
    if name == "logit_min":
        return value.min()
    if name == "near_zero":
        return value.mean()
    # (N, H, T) to what `Scale` keeps of a layer
    wide = value.swapaxes(0, 1).astype(np.float64)
    chosen, others = wide[:, ~sinks_NxT], wide[:, sinks_NxT]
    finite = chosen[np.isfinite(chosen)]
    quantiles = np.quantile(finite, QUANTILES) if finite.size else np.full(len(QUANTILES), np.nan)
    return _mean_of_finite(chosen), quantiles, _mean_of_finite(others)


def _mean_of_finite(values_HxX: np.ndarray) -> np.ndarray:
    """(H,); NaN for a head without any."""
    seen = np.isfinite(values_HxX)
    total, number = np.where(seen, values_HxX, 0.0).sum(axis=1), seen.sum(axis=1)
    return total / np.where(number > 0, number, np.nan)


def _joined(layers: list | None) -> Scale | None:
    return None if layers is None else Scale(*map(np.stack, zip(*layers, strict=True)))


@dataclass(frozen=True)
class _Scales:
    """The `Observe` of scales and logits."""

    spec: AttentionSpec

    def __call__(self, x_in, taps, sinks_BxT):
        q, k = (taps[name].astype(jnp.float32) for name in ("q", "k"))
        # attention over values that are 1 for all tokens but sinks
        rest_BxTxKx1 = jnp.broadcast_to(
            (~sinks_BxT).astype(jnp.float32)[:, :, None, None], (*k.shape[:3], 1)
        )
        left = attend(q, k, rest_BxTxKx1, kernel="blockwise", spec=self.spec).out
        high, low = logit_range(q, k, self.spec)
        reduced = {
            "implicit": left[..., 0].transpose(0, 2, 1),
            "logit_max": high,
            "logit_min": low,
        }
        if "h_mid" in taps:
            reduced["near_zero"] = near_zero_updates(taps["attn_out"], taps["h_mid"])
        if "attn_scale" in taps:
            reduced["explicit"] = taps["attn_scale"].astype(jnp.float32)
        return reduced
