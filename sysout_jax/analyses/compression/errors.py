"""How far a compressed model's residual stream is from the original one, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.language_model import LanguageModel
from sysout_jax.sharding import constrain


@dataclass(frozen=True)
class HiddenErrors:
    """Of h after each layer: relative per token (then averaged over all), and whose share of the squared error."""

    relative: np.ndarray  # (L,) mean over tokens of ‖h' − h‖ / ‖h‖
    dims_share: np.ndarray  # (L,) of the squared error, in the given dims
    tokens_share: np.ndarray  # (L,) at the given tokens


def hidden_errors(
    lm: LanguageModel,
    compressed: LanguageModel,
    tokens,
    dims: Sequence[int] = (),
    marked_NxT: np.ndarray | None = None,
    *,
    accumulate: bool = True,
) -> HiddenErrors:
    """Both models in step over `tokens` (N, T). Without `accumulate` every layer starts from the exact input, so that its
    error is its own. Shares are NaN where there is no error, 0 without dims or tokens."""
    exact = Stream(
        lm.with_passes(on_layer=None), tokens
    )  # two layers in step are one to who counts them
    other = Stream(compressed, tokens)
    marked = np.zeros(np.shape(tokens), bool) if marked_NxT is None else marked_NxT
    rows = []
    steps = zip(exact.layers(observe_nothing), other.layers(observe_nothing), strict=True)
    for _ in steps:
        relative, token, dim = _compare(exact, other)
        total = token.sum()
        rows.append((
            relative.mean(),
            dim[list(dims)].sum() / total if total else np.nan,
            token[marked].sum() / total if total else np.nan,
        ))  # fmt: skip
        if not accumulate:
            other.hidden = list(exact.hidden)
    return HiddenErrors(*np.array(rows).T)


def final_error(exact: Stream, other: Stream) -> float:
    """Mean over tokens of the relative error, of two streams of the same tokens wherever they are."""
    return float(_compare(exact, other)[0].mean())


def _compare(exact: Stream, other: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Relative error (N, T) and squared error (N, T) of every token, squared error (D,) of every dim; float64."""
    with exact.lm.computing():
        parts = [
            jax.device_get(_difference(a, b))
            for a, b in zip(exact.states(), other.states(), strict=True)
        ]
    relative, token, dim = (np.concatenate(p).astype(np.float64) for p in zip(*parts, strict=True))
    return relative, token, dim.sum(axis=0)


@jax.jit
def _difference(exact_BxTxD, other_BxTxD):
    exact = exact_BxTxD.astype(jnp.float32)
    squared = (other_BxTxD.astype(jnp.float32) - exact) ** 2
    token = squared.sum(2)
    size = (exact**2).sum(2)
    relative = jnp.sqrt(token / jnp.where(size > 0, size, 1.0))
    return tuple(constrain(sums, P()) for sums in (relative, token, squared.sum(1)))
