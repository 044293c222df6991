"""Which outlier tokens and feature dims are followed through the layers, chosen from the statistics of the first pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.lifecycle.close_up import WINDOW
from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.activations import ActivationStats

MAX_TOKENS = 16  # outlier tokens followed per sequence
MAX_DIMS = 16
MAX_ELEMENTS = 4096  # followed in all, so that a report stays small


@dataclass(frozen=True)
class Targets:
    """What to follow: E of N sequences, up to M outlier tokens in each, and P feature dims."""

    sequences: np.ndarray  # (E,) int, rows of the analysed tokens
    tokens: np.ndarray  # (E, M) int positions, padded with the first one
    valid: np.ndarray  # (E, M) bool: not padding
    mask: np.ndarray  # (L, N, T) bool: every outlier token that enters the layer, followed or not; where none enters, all there ever are
    dims: np.ndarray  # (P,) int feature dims of h
    window: int  # first position of the close-up, which shows the first followed sequence
    tokens_left_out: int  # weaker outlier tokens, of all sequences
    dims_left_out: int


def choose_targets(stats: ActivationStats, tau: float) -> Targets:
    """The strongest that exceed τ in some layer; `stats` are those of h on all sequences."""
    living = np.asarray(stats.outlier_tokens(tau))
    alive = np.asarray(living.any(axis=0))  # (N, T) ever an outlier
    ratio = rules.ratio(stats.token_max, stats.sequence_mean[..., None]).max(axis=0)
    strength = np.where(alive, ratio, 0.0)
    channel_ratio = stats.channel_ratio.max(axis=0)
    flagged = np.flatnonzero(stats.outlier_channels(tau).any(axis=0))
    dims = np.sort(flagged[np.argsort(-channel_ratio[flagged], kind="stable")[:MAX_DIMS]])
    most = min(int(alive.sum(axis=1).max()), MAX_TOKENS)
    order = np.argsort(-strength, axis=1, kind="stable")[:, :most]
    valid = np.take_along_axis(alive, order, axis=1)
    room = max(MAX_ELEMENTS // (most * len(dims)), 1)
    sequences = np.sort(np.argsort(-strength.max(axis=1), kind="stable")[:room])
    sequences = sequences[alive[sequences].any(axis=1)]
    valid, order = valid[sequences], order[sequences]
    first = int(alive[sequences[0]].argmax())
    return Targets(
        sequences=sequences,
        tokens=np.where(valid, order, order[:, :1]),
        valid=valid,
        mask=rules.entering(living),
        dims=dims,
        window=int(np.clip(first - 4, 0, max(stats.token_max.shape[2] - WINDOW, 0))),
        tokens_left_out=int(alive.sum() - valid.sum()),
        dims_left_out=len(flagged) - len(dims),
    )
