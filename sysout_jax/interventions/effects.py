"""What an edit does to a model: outliers left, attention on the tokens that held them, likelihood of the text; per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sysout_jax.engine import Stream, Write
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite, finite_or
from sysout_jax.outliers.definitions import exceeds, ratio
from sysout_jax.perplexity import of_mean_nll, perplexity_of


@dataclass(frozen=True)
class Measured:
    """One pass over N sequences. Everything is per sequence, so that sequences can be resampled."""

    outliers: np.ndarray  # (L, N) int: tokens of h that hold an activation outlier
    attention: np.ndarray  # (L, H, N) sum over queries of the attention on the marked tokens
    queries: np.ndarray  # (N,) int: queries that can see a marked token
    nll: np.ndarray  # (N,) nats, mean over next tokens; NaN for sequences of one token
    ratio: float  # largest |h| over the mean of its sequence, all layers
    nonfinite: Nonfinite

    @property
    def mass(self) -> np.ndarray:
        """(L, H) share of attention on the marked tokens, over queries that can see one."""
        return self.attention.sum(-1) / max(self.queries.sum(), 1)

    @property
    def perplexity(self) -> float:
        return of_mean_nll(float(self.nll.mean()))


def measure(
    lm: LanguageModel,
    tokens: np.ndarray,
    marked: np.ndarray,
    tau: float,
    *,
    write: Write | None = None,
    extra: Sequence[Any] | None = None,
) -> Measured:
    """Run `tokens` (N, T) through the model and look at attention on `marked` (N, T) bool; `write` and `extra` as `Stream.layers`
    takes them."""
    stream = Stream(lm, tokens)
    outliers, attention, ratios = [], [], []
    for _, _, seen in stream.layers(_observe, extra, write):
        outliers.append(exceeds(seen["token_max"], seen["mean"][:, None], tau).sum(1))
        ratios.append(ratio(seen["token_max"], seen["mean"][:, None]).max())
        attention.append((finite_or(seen["sums"]) * marked[:, None]).sum(2).T)
    return Measured(
        outliers=np.stack(outliers),
        attention=np.stack(attention).astype(np.float64),
        queries=np.maximum.accumulate(marked, axis=1).sum(1),
        nll=perplexity_of(stream).window_nll,
        ratio=float(max(ratios)),
        nonfinite=stream.nonfinite(),
    )


def _observe(x_in, taps, extra):
    magnitude = jnp.abs(taps["h"].astype(jnp.float32))
    finite = jnp.isfinite(magnitude)
    magnitude = jnp.where(finite, magnitude, 0.0)
    return {
        "token_max": magnitude.max(2),
        "mean": magnitude.sum((1, 2)) / jnp.maximum(finite.sum((1, 2)), 1),
        "sums": taps["attn_sums"],
    }
