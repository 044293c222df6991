"""The outlier monitor: what a layer's intermediates say about outliers, cheap enough to be asked during training.

`monitor_layer` works on the intermediates of any JAX trainer; `Monitor` applies it to our models on a fixed probe batch. The quantities
are those of the paper's Figures 10 to 12 and Appendix C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.attention.logits import logit_range
from sysout_jax.capture import COLLECTION, flatten_taps
from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.models import build
from sysout_jax.numerics.order import median_of_magnitudes
from sysout_jax.outliers.definitions import even_share, excess_kurtosis, sink_rate
from sysout_jax.sharding import BATCH, constrain
from sysout_jax.statistics.attention import near_zero_updates
from sysout_jax.training.forward import embedded, equal_blocks

#: Axes of the intermediates that are looked at.
AXES = {
    **dict.fromkeys(
        ("h", "x_down", "attn_out", "h_mid", "attn_sums", "attn_scale", "sink_mass"), 3
    ),
    **dict.fromkeys(("q", "k"), 4),
}


def monitor_layer(taps: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Scalars (float32) of one layer from those intermediates that are given, named and shaped as in `sysout_jax.TAPS`.

    h: `h_top1`, `h_median`, `h_mean` of |h| (means over sequences), `h_kurtosis` (excess, over all elements). x_down:
    `x_down_top1`. attn_sums: `first_token_share`, the attention that the first token gets, and `sink_rate`, the share of (sequence, head)
    that give it more than 30 %, and `first_token_over_even`, the attention that it gets over what even attention would give it. q and k: `logit_max`, `logit_min` over causal pairs. attn_scale: `scale_mean`, `scale_min`. sink_mass: its mean
    over sequences, heads and queries, under the same name.
    attn_out and h_mid: `near_zero_updates`, the share of tokens that attention moves by less than 1 %. Pure, for use under jit.
    """
    _check_taps(taps)
    scalars: dict[str, jax.Array] = {}
    if "h" in taps:
        magnitude = jnp.abs(taps["h"].astype(jnp.float32))
        scalars["h_top1"] = magnitude.max((1, 2)).mean()
        scalars["h_mean"] = magnitude.mean()
        nonfinite_B = (~jnp.isfinite(magnitude)).sum((1, 2))
        scalars["h_median"] = median_of_magnitudes(taps["h"], nonfinite_B).mean()
        scalars["h_kurtosis"] = _excess_kurtosis(taps["h"].astype(jnp.float32))
    if "x_down" in taps:
        scalars["x_down_top1"] = _largest(taps["x_down"]).mean()
    if "attn_sums" in taps:
        sums_BxHxS = taps["attn_sums"].astype(jnp.float32)
        # the first token is seen by every query, so its column sum over the number of queries is its mean share
        share_BxH = sums_BxHxS[..., 0] / sums_BxHxS.shape[-1]
        scalars["first_token_share"] = share_BxH.mean()
        even = even_share(sums_BxHxS.shape[-1])
        scalars["first_token_over_even"] = share_BxH.mean() / even
        scalars["sink_rate"] = sink_rate(sums_BxHxS)
    if "q" in taps and "k" in taps:
        high_B, low_B = logit_range(taps["q"], taps["k"])
        scalars["logit_max"], scalars["logit_min"] = high_B.max(), low_B.min()
    if "attn_scale" in taps:
        scale = taps["attn_scale"].astype(jnp.float32)
        scalars["scale_mean"], scalars["scale_min"] = scale.mean(), scale.min()
    if "sink_mass" in taps:
        scalars["sink_mass"] = taps["sink_mass"].astype(jnp.float32).mean()
    if "attn_out" in taps and "h_mid" in taps:
        scalars["near_zero_updates"] = near_zero_updates(taps["attn_out"], taps["h_mid"]).mean()
    return scalars


def _check_taps(taps: Any) -> None:
    """InputError unless they are arrays with as many axes as those of `sysout_jax.TAPS`."""
    if not isinstance(taps, Mapping):
        raise InputError(
            f"taps are {shown(taps)}; expected arrays under the names of sysout_jax.TAPS"
        )
    for name, axes in AXES.items():
        if name == "x_down" and "expert" in taps:
            axes = 4
        if name in taps and getattr(taps[name], "ndim", None) != axes:
            raise InputError(
                f"taps hold {name} of {getattr(taps[name], 'ndim', 'no')} axes; expected one layer's, with {axes}"
            )


def _largest(x_BxTxF: jax.Array) -> jax.Array:
    """(B,) the largest magnitude; with experts of (B, T, R, F)."""
    return jnp.abs(x_BxTxF.astype(jnp.float32)).max(tuple(range(1, x_BxTxF.ndim)))


def _excess_kurtosis(x: jax.Array) -> jax.Array:
    # a power of two brings the largest magnitude near 1: exact, and no fourth power leaves float32
    exponent = jnp.clip(jnp.frexp(jnp.abs(x).max())[1], -126, 126)
    x = x * jnp.ldexp(jnp.float32(1), -exponent)
    square = (x - x.mean()) ** 2
    return excess_kurtosis((square**2).mean(), square.mean())


class Monitor:
    """`monitor_layer` on every layer of one of our models, for a probe batch (B, T) that stays the same."""

    def __init__(self, config: ModelConfig, dtype: str):
        # the one kernel that gives column sums without a whole map
        self._model = build(config, dtype, "float32", "blockwise")
        self._run = jax.jit(self._layers)

    def __call__(self, params: dict, probe_BxT: jax.Array) -> dict[str, list[float]]:
        """Every quantity as a list over layers."""
        scalars = jax.device_get(self._run(params, probe_BxT))
        return {name: np.asarray(values, float).tolist() for name, values in scalars.items()}

    def _layers(self, params: dict, probe_BxT: jax.Array) -> dict[str, jax.Array]:
        def step_of(block):
            @jax.jit
            def step(layer_params, x_BxTxD):
                y, state = block.apply({"params": layer_params}, x_BxTxD, mutable=[COLLECTION])
                return constrain(y, BATCH), monitor_layer(flatten_taps(state[COLLECTION]))

            return step

        x_BxTxD, rows = embedded(self._model, params, probe_BxT), []
        for layer, step in enumerate(equal_blocks(self._model, step_of)):
            x_BxTxD, row = step(params[f"layer_{layer}"], x_BxTxD)
            rows.append(row)
        return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
