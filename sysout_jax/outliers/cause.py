"""Does the birth weight cause the outliers? Set it to zero and compare, beside as many random weights of the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers.collect import Stats
from sysout_jax.outliers.definitions import SINK_SHARE
from sysout_jax.outliers.results import Birth, Cause, Effect
from sysout_jax.outliers.trace import Trace

Entries = Mapping[
    int, tuple[np.ndarray, np.ndarray]
]  # layer → (channels, dims) of its down projection


def find_cause(
    lm: LanguageModel,
    stats: Stats,
    path: Trace,
    birth: Birth,
    tau: float,
    seed: int = 0,
    on_layer: Callable[[], object] | None = None,
) -> Cause | None:
    """Two more passes over the traced sequences. None where no channel carries a birth."""
    born: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for event in birth.events:
        if event.channels:
            born[event.layer] = (np.array([c.index for c in event.channels]), np.array(event.dims))
    if not born:
        return None
    rng = np.random.default_rng(seed)
    F = lm.config.d_ff
    random = {
        layer: (
            rng.choice(
                np.setdiff1d(np.arange(F), channels), min(len(channels), F - len(channels)), False
            ),
            dims,
        )
        for layer, (channels, dims) in born.items()
    }
    sinks = path.mass > SINK_SHARE
    sinks[: birth.events[0].layer + 1] = False
    alive = stats.h.outlier_tokens(tau)[:, path.targets.sequences]
    baseline = Effect(
        outliers=int(alive.sum()),
        mass=float(path.mass[sinks].mean()) if sinks.any() else float("nan"),
        perplexity=_perplexity(path.nll),
    )
    return Cause(
        weights=sum(len(channels) * len(dims) for channels, dims in born.values()),
        baseline=baseline,
        zeroed=_measure(lm, stats, path, born, sinks, tau, on_layer),
        control=_measure(lm, stats, path, random, sinks, tau, on_layer),
    )


def zero_down_weights(lm: LanguageModel, entries: Entries) -> LanguageModel:
    """The model with W_down[dims, channels] = 0 in the given layers."""

    def edit(channels: np.ndarray, dims: np.ndarray):
        def apply(params: dict) -> dict:
            mlp = params["mlp"]
            kernel = np.array(mlp["down_proj"]["kernel"])
            kernel[np.ix_(channels, dims)] = 0
            return params | {"mlp": mlp | {"down_proj": mlp["down_proj"] | {"kernel": kernel}}}

        return apply

    return lm.with_edits({f"layer_{layer}": edit(*where) for layer, where in entries.items()})


def _measure(
    lm: LanguageModel,
    stats: Stats,
    path: Trace,
    entries: Entries,
    sinks: np.ndarray,
    tau: float,
    on_layer: Callable[[], object] | None,
) -> Effect:
    stream = Stream(zero_down_weights(lm, entries), stats.tokens[path.targets.sequences])
    mask = path.targets.mask
    sees = np.maximum.accumulate(mask, axis=1).sum()
    outliers, mass = 0, []
    for layer, _, seen in stream.layers(_observe, on_layer=on_layer):
        outliers += int((seen["token_max"] > tau * seen["mean"][:, None]).sum())
        share_H = (np.nan_to_num(seen["sums"]) * mask[:, None]).sum((0, 2)) / max(sees, 1)
        mass.extend(share_H[sinks[layer]])
    return Effect(
        outliers, float(np.mean(mass)) if mass else float("nan"), _perplexity(stream.nll())
    )


def _observe(x_in, taps, extra):
    magnitude = jnp.abs(taps["h"].astype(jnp.float32))
    magnitude = jnp.where(jnp.isfinite(magnitude), magnitude, 0.0)
    return {
        "token_max": magnitude.max(2),
        "mean": magnitude.mean((1, 2)),
        "sums": taps["attn_sums"],
    }


def _perplexity(nll: np.ndarray) -> float:
    return float(np.exp(np.mean(nll, dtype=np.float64))) if nll.size else float("nan")
