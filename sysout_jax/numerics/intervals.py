"""Intervals by the bootstrap over sequences (Efron 1979), beside the values of every seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
FEW = 6  # resamples of so few are hardly different from single ones


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, its 95 % percentile interval over resampled sequences, and each seed's own value."""

    value: float
    low: float  # NaN for a single sequence, as `high`
    high: float
    seeds: tuple[float, ...]


def told(count: int, what: str) -> str:
    """What the brackets of a table hold, for a page: of `count` things such as `windows`."""
    if count == 1:
        return f"no interval, as one {what.removesuffix('s')} cannot be resampled"
    few = ", so few that they are not much more than the range of these" if count < FEW else ""
    return f"{LEVEL:.0%} bootstrap intervals over {count:,} {what}{few}"


def bootstrap_weights(num_sequences: int, seed: int = 0) -> np.ndarray:
    """(R + 1, N) how often each sequence is drawn; the first row is the sample itself. One sequence cannot be resampled: R = 0."""
    if num_sequences == 1:
        return np.ones((1, 1))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_sequences, np.full(num_sequences, 1 / num_sequences), RESAMPLES)
    return np.concatenate([np.ones((1, num_sequences)), drawn])


def interval(statistic_RxS: np.ndarray) -> Interval:
    """From a statistic of S seeds under every row of `bootstrap_weights`."""
    mean = statistic_RxS.mean(axis=1)
    resampled = mean[1:][np.isfinite(mean[1:])]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail]) if len(resampled) else (np.nan,) * 2
    return Interval(float(mean[0]), float(low), float(high), tuple(map(float, statistic_RxS[0])))
