"""Which prefix to absorb: a greedy search over tokens that models park their outliers on.

A prefix is tried by reading [prefix, text] with the model as it is, which is what the absorbed model computes; all candidates of a round go through
one pass. The best one has the smallest largest ratio |h| / mean|h| on the text; it is prolonged, by one of the best of the first round, while that
falls by at least a tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.data.tokenizers import END_TOKENS, Tokenizer
from sysout_jax.engine import Stream
from sysout_jax.language_model import LanguageModel
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.tokens import LISTS
from sysout_jax.perplexity import of_mean_nll

LONGEST = 4  # tokens of a prefix
GAIN = 0.9  # what a longer prefix must bring the largest ratio down to
WORSE = 1.02  # what a prefix may raise the perplexity to
WINDOWS, LENGTH = (
    2,
    128,
)  # of the text that is searched on, at most; a prefix takes its place from the end
STRONGEST = 4  # tokens with the largest ratios of the text that are tried
KEPT = 5  # of a round that the next one tries


@dataclass(frozen=True)
class Tried:
    """A prefix on the text of the search. The first one of a search is empty: the model as it is."""

    prefix: tuple[int, ...]
    ratio: float  # largest |h| over its sequence's mean, all layers
    perplexity: float
    chosen: bool = False


def _observe(x_in, taps, prefix_B) -> jax.Array:
    """The largest ratio of every token (B, T), those of the prefix left out: 0."""
    magnitude = jnp.abs(taps["h"].astype(jnp.float32))
    of_text = jnp.arange(magnitude.shape[1])[None] >= prefix_B[:, None]
    used = jnp.isfinite(magnitude) & of_text[..., None]
    magnitude = jnp.where(used, magnitude, 0.0)
    mean_B = magnitude.sum((1, 2)) / jnp.maximum(used.sum((1, 2)), 1)
    return rules.ratio(magnitude.max(-1), mean_B[:, None])


def search(lm: LanguageModel, tokens_NxT: np.ndarray, longest: int = LONGEST) -> tuple[Tried, ...]:
    """All that was tried on `tokens`, in order; the last one that is `chosen` is the prefix."""
    text = np.asarray(tokens_NxT)[:WINDOWS, :LENGTH]
    ((start, token_ratio_NxT),) = _try(lm, text, [()])
    tried = [start]
    best, pool = start, candidates(lm.tokenizer, text, token_ratio_NxT)
    while pool and len(best.prefix) < min(longest, text.shape[1] - 1):
        attempts = [
            attempt for attempt, _ in _try(lm, text, [(*best.prefix, token) for token in pool])
        ]
        tried += attempts
        allowed = [
            attempt for attempt in attempts if attempt.perplexity <= WORSE * start.perplexity
        ]
        ranked = sorted(
            allowed or attempts, key=lambda attempt: (attempt.ratio, attempt.perplexity)
        )
        if best.prefix and not (allowed and ranked[0].ratio <= GAIN * best.ratio):
            break
        best, pool = ranked[0], [attempt.prefix[-1] for attempt in ranked[:KEPT]]
    return tuple(
        Tried(attempt.prefix, attempt.ratio, attempt.perplexity, attempt.prefix == best.prefix)
        for attempt in tried
    )


def chosen(tried: Sequence[Tried]) -> Tried:
    """The prefix that a search ended with."""
    return next(attempt for attempt in tried if attempt.chosen)


def candidates(
    tokenizer: Tokenizer | None, tokens_NxT: np.ndarray, token_ratio_NxT: np.ndarray
) -> list[int]:
    """BOS and the end of a text, strong delimiters, and the tokens beyond the first position with the largest ratios, once each."""
    tokens: list[int | None] = []
    if tokenizer is not None:
        ids = [tokenizer.encode(text) for text in LISTS["strong delimiter"]]
        ends = [tokenizer.backend.token_to_id(name) for name in END_TOKENS]
        tokens += [
            tokenizer.bos_id,
            *ends,
            *(token_ids[0] for token_ids in ids if len(token_ids) == 1),
        ]
    order = np.argsort(-token_ratio_NxT[:, 1:].ravel(), kind="stable")
    strongest = dict.fromkeys(int(token) for token in tokens_NxT[:, 1:].ravel()[order])
    tokens += list(strongest)[:STRONGEST] or [int(tokens_NxT[0, 0])]
    return [token for token in dict.fromkeys(tokens) if token is not None]


def _try(
    lm: LanguageModel, text_NxT: np.ndarray, prefixes: Sequence[tuple[int, ...]]
) -> list[tuple[Tried, np.ndarray]]:
    """Every prefix, all of one length, before every window, which loses as much at its end: one compiled pass serves all rounds.

    With the largest ratio of each token (N, T), over layers.
    """
    count, (windows, length) = len(prefixes[0]), text_NxT.shape
    kept_NxT = text_NxT[:, : length - count]
    rows = [
        np.concatenate([np.tile(np.array(prefix, np.int32), (windows, 1)), kept_NxT], axis=1)
        for prefix in prefixes
    ]
    stream = Stream(lm, np.concatenate(rows))
    prefix_R = [np.full(len(stream.tokens), count, np.int32)] * lm.num_layers
    ratio_RxT = np.max([seen for _, _, seen in stream.layers(_observe, prefix_R)], axis=0)
    nll_RxT = stream.nll()[:, count:].astype(np.float64)
    attempts = []
    for i, prefix in enumerate(prefixes):
        own = slice(i * windows, (i + 1) * windows)
        nll = float(nll_RxT[own].mean()) if nll_RxT.shape[1] else float("nan")
        attempts.append(
            (Tried(prefix, float(ratio_RxT[own].max()), of_mean_nll(nll)), ratio_RxT[own])
        )
    return attempts
