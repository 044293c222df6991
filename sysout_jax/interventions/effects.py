"""What an edit does to a model: outliers left, attention on the tokens that hold them, likelihood of the text; per sequence."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from sysout_jax.engine import Observe, Stream, Write
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import Nonfinite, finite_or
from sysout_jax.outliers.definitions import (
    TAUS,
    asking,
    attention_on,
    even_share_of,
    exceeds,
    ratio,
)
from sysout_jax.perplexity import of_mean_nll, perplexity_of


@dataclass(frozen=True)
class Measured:
    """One pass over N sequences. Everything is per sequence, so that sequences can be resampled."""

    outliers: np.ndarray  # (L, N) int: tokens of h that hold an activation outlier
    attention: np.ndarray  # (L, H, N) sum over queries of the attention on the marked tokens
    queries: np.ndarray  # (L, N) int: queries that can see a marked token
    even: np.ndarray  # (L,) share that attention which is even in each row gives the marked tokens, mean over those queries
    nll: np.ndarray  # (N,) nats, mean over next tokens; NaN for sequences of one token
    flags: np.ndarray  # (L, len(TAUS)) int: the same tokens at every τ, of all sequences
    ratios: np.ndarray  # (L,) largest |h| over the mean of its sequence
    nonfinite: Nonfinite

    @property
    def ratio(self) -> float:
        """Largest |h| over the mean of its sequence, all layers."""
        return float(self.ratios.max())

    @property
    def mass(self) -> np.ndarray:
        """(L, H) share of attention on the marked tokens, over queries that can see one."""
        return self.attention.sum(-1) / np.maximum(self.queries.sum(-1), 1)[:, None]

    @property
    def perplexity(self) -> float:
        return of_mean_nll(float(self.nll.mean()))


class Unedited:
    """A model as it is on `tokens` (N, T), with attention in each layer on the tokens `marked` there, (L, N, T) bool; and the states that edits start
    from, one before each layer of `starts`. What lies before the layer of an edit it does not change: that is computed once.

    An `Observer` of the stream that it is made of, at its start.
    """

    def __init__(self, stream: Stream, marked: np.ndarray, tau: float, starts: Collection[int]):
        self._stream, self._marked, self._tau = stream, marked, tau
        self._starts, self._first = starts, min(starts)
        masks = list(zip(marked, stream.lm.attention_windows(marked.shape[2]), strict=True))
        self._queries = np.stack([asking(*mask) for mask in masks])
        self._even = np.array([even_share_of(*mask) for mask in masks])
        self._entering = {0: list(stream.hidden)} if 0 in starts else {}
        self._rows: list[dict[str, Any]] = []

    @classmethod
    def run(
        cls,
        lm: LanguageModel,
        tokens: np.ndarray,
        marked: np.ndarray,
        tau: float,
        starts: Collection[int],
    ) -> Unedited:
        """With a pass of its own."""
        self = cls(Stream(lm, tokens), marked, tau, starts)
        self._stream.run([self])
        return self

    def observe(self, layer: int) -> Observe:
        return observe_effects

    def extra(self, layer: int) -> None:
        return None

    def take(self, layer: int, params: dict, seen: dict[str, np.ndarray]) -> None:
        self._rows.append(self._row(layer, seen))
        if layer + 1 in self._starts:
            self._entering[layer + 1] = list(self._stream.hidden)

    @cached_property
    def measured(self) -> Measured:
        return self._measured(self._stream, self._rows)

    def edited(
        self,
        lm: LanguageModel | None = None,
        *,
        write: Write | None = None,
        extra: Sequence[Any] | None = None,
        start: int | None = None,
    ) -> Measured:
        """Under an edit: `lm` with other weights from layer `start` on, or `write` and `extra` as `Stream.layers` takes them.

        `start` is one of `starts`, by default the first of them.
        """
        start = self._first if start is None else start
        stream = copy.copy(self._stream)
        stream.lm, stream.hidden = lm or stream.lm, list(self._entering[start])
        rows = self._rows[:start]
        for layer, _, seen in stream.layers(observe_effects, extra, write, start):
            rows.append(self._row(layer, seen))
        return self._measured(stream, rows)

    def _row(self, layer: int, seen: dict[str, np.ndarray]) -> dict[str, Any]:
        mean_Nx1 = seen["mean"][:, None]
        over = [exceeds(seen["token_max"], mean_Nx1, tau) for tau in (self._tau, *TAUS)]
        return {
            "outliers": over[0].sum(1),
            "flags": np.array([flagged.sum() for flagged in over[1:]]),
            "ratio": ratio(seen["token_max"], mean_Nx1).max(),
            "attention": attention_on(finite_or(seen["sums"]), self._marked[layer]).T,
        }

    def _measured(self, stream: Stream, rows: Sequence[dict[str, Any]]) -> Measured:
        return Measured(
            outliers=np.stack([row["outliers"] for row in rows]),
            attention=np.stack([row["attention"] for row in rows]).astype(np.float64),
            queries=self._queries,
            even=self._even,
            nll=perplexity_of(stream).window_nll,
            flags=np.stack([row["flags"] for row in rows]),
            ratios=np.array([row["ratio"] for row in rows], np.float64),
            nonfinite=stream.nonfinite(),
        )


def observe_effects(x_in, taps, extra):
    """The `Observe` of `Unedited`."""
    magnitude = jnp.abs(taps["h"].astype(jnp.float32))
    finite = jnp.isfinite(magnitude)
    magnitude = jnp.where(finite, magnitude, 0.0)
    return {
        "token_max": magnitude.max(2),
        "mean": magnitude.sum((1, 2)) / jnp.maximum(finite.sum((1, 2)), 1),
        "sums": taps["attn_sums"],
    }
