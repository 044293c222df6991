"""What counts as an outlier: every rule of the literature, written once, on what the reductions of a sequence keep.

All functions take numpy and jax arrays, broadcast, and give the same kind. Magnitudes are |x|; what is not finite has been left out before.
Sources: paper = An et al. 2025 (arXiv 2502.06415); Sun et al. 2024 (massive activations); Gu et al. 2024 (attention sinks);
He et al. 2024 (outlier features).
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: numpy's or jax's
Array = Any

TAU = 1000.0
#: Every flag is reported at these thresholds too, whatever τ was asked for.
TAUS = (100.0, 300.0, 1000.0, 3000.0)
MASSIVE_VALUE = 100.0
MASSIVE_RATIO = 1000.0
SINK_SHARE = 0.3
CODE_SHARE = 0.1
CANDIDATE_SHARE = 0.75
"""Without outliers at τ, elements over this share of the largest ratio are shown or followed instead."""
NEAR_ZERO = 0.01
WRITE_SHARE = 0.25
"""A layer gives birth to an element when it writes this share of the largest value that the element has in this life, and takes it back
when it removes this share of what enters it."""
ALIVE_SHARE = 0.25
"""An element lives while |h| is at least this share of the largest value that it has had in this life."""
MAIN_SHARE = 0.9
"""What carries something: the smallest set that makes up this share of it."""


def exceeds(magnitude: Array, mean: Array, tau: Array) -> Array:
    """`|x| > τ · mean|x|`, bool. Paper §3, with the mean over a sequence for an activation, over a row for a weight, over the keys of a
    head for a key's column sum of attention."""
    with np.errstate(over="ignore"):  # nothing exceeds what no float reaches
        return magnitude > tau * mean


def ratio(magnitude: Array, mean: Array) -> Array:
    """`|x| / mean|x|`: what is compared with τ; 0 where the mean is 0. Of the largest of a row or column the extremal ratio (paper §3.2)."""
    xp = mean.__array_namespace__()
    some = mean > 0
    return xp.where(some, magnitude / xp.where(some, mean, xp.ones_like(mean)), 0.0)


def reachable(tau: float, count: int) -> bool:
    """Whether one of `count` magnitudes can exceed τ times their mean: it is at most `count` times the mean, where all others are 0."""
    return tau < count


def level_of(largest: float, tau: float) -> float:
    """The ratio over which elements are shown: τ where the largest ratio exceeds it, else that of candidates."""
    return float(tau) if largest > tau else candidate_level(largest)


def candidate_level(largest: float) -> float:
    """The ratio over which elements are shown where none is an outlier: `CANDIDATE_SHARE` of the largest."""
    return float(CANDIDATE_SHARE * largest)


def massive_bound(median: Array) -> Array:
    """What a massive activation exceeds: 100, and 1000 · median|x| over its sequence. Sun et al. 2024."""
    return median.__array_namespace__().maximum(MASSIVE_VALUE, MASSIVE_RATIO * median)


def attention_outliers(cumulative_HxT: Array, tau: float = TAU) -> Array:
    """Keys whose column sum exceeds τ times the head's mean column sum; bool (..., H, T). Paper §3."""
    return exceeds(cumulative_HxT, cumulative_HxT.mean(axis=-1, keepdims=True), tau)


def code_outliers(cumulative_T: Array) -> Array:
    """Keys with a column sum of at least T/10, bool (..., T). With the mean over heads, the rule of the paper's published code."""
    return is_code_outlier(cumulative_T / cumulative_T.shape[-1])


def is_code_outlier(share: Array) -> Array:
    """The same rule on a key's share of all attention, its column sum over T."""
    return share >= CODE_SHARE


def even_attention_passes(length: int) -> bool:
    """Whether the same rule flags the first key of even attention too: so it does in texts of up to 43 tokens."""
    return bool(is_code_outlier(even_share(length)))


def sink_scores(cumulative_HxT: Array, reach: Any = None) -> Array:
    """`α_k = mean over queries i ≥ k of A_ik`, from column sums; (..., H, T). Gu et al. 2024.

    `reach`, a number or an array that broadcasts against them, says how many queries see a key at most where a window ends its sight.
    """
    T = cumulative_HxT.shape[-1]
    queries = T - np.arange(T)
    queries = queries if reach is None else np.minimum(queries, reach)
    return cumulative_HxT / np.broadcast_to(queries, cumulative_HxT.shape)


def even_share(length: int, reach: int | None = None) -> float:
    """What attention that is even in each causal row gives the first of T keys, mean over all rows: 1/(t+1) of those that see it, the first `reach`."""
    seeing = np.arange(1, min(length, reach or length) + 1)
    return float((1 / seeing).sum() / length)


def even_share_of(marked_NxT: np.ndarray, window: int | None = None) -> float:
    """What attention that is even in each row gives the marked keys, mean over the rows that see one; NaN where none does."""
    marked = over_seen_keys(marked_NxT.astype(np.int64), window)
    share = marked / over_seen_keys(np.ones_like(marked), window)
    return float(share[marked > 0].mean()) if marked.any() else float("nan")


def attention_on(sums_NxHxT: np.ndarray, marked_NxT: np.ndarray) -> np.ndarray:
    """(N, H) attention on the marked keys, summed over queries, from column sums. Over the number of `asking` queries it is a share."""
    return (sums_NxHxT * marked_NxT[:, None]).sum(axis=2)


def asking(marked_NxT: np.ndarray, window: int | None = None) -> np.ndarray:
    """(N,) queries that can see a marked key."""
    return (over_seen_keys(marked_NxT.astype(np.int64), window) > 0).sum(axis=1)


def over_seen_keys(values: Array, window: int | None = None) -> Array:
    """(N, T, …) for each query the sum over the keys that it sees: its own and those before it, with a window only the last so many."""
    total = values.cumsum(axis=1)
    if window is None or window >= total.shape[1]:
        return total
    inside = total[:, window:] - total[:, :-window]
    return total.__array_namespace__().concat([total[:, :window], inside], axis=1)


def entering(living_LxNxT: np.ndarray) -> np.ndarray:
    """(L, N, T) the outlier tokens whose attention, values and edits a layer is asked about: those that enter it; where none does, all that
    there ever are."""
    before = np.concatenate([np.zeros_like(living_LxNxT[:1]), living_LxNxT[:-1]])
    some_Lx1x1 = np.asarray(before.any(axis=(1, 2), keepdims=True))
    return np.where(some_Lx1x1, before, living_LxNxT.any(axis=0))


def is_sink(score: Array, even: Array = 0.0) -> Array:
    """Whether a head's α, or its share of attention, makes a sink, bool: over 0.3 (Gu et al. 2024), and over what even attention gives.

    `even` matters in short texts: of 9 tokens the first gets 31% by arithmetic.
    """
    return (score > SINK_SHARE) & (score > even)


def sink_rate(cumulative_HxT: Array, reach: int | None = None) -> Array:
    """Share of heads (and of sequences, the leading axes) for which the first token is a sink. Gu et al. 2024; `reach` as in `sink_scores`."""
    return is_sink(sink_scores(cumulative_HxT, reach)[..., 0]).mean()


def is_near_zero(update: Array, stream: Array) -> Array:
    """Whether an attention update of this length changes next to nothing of a residual stream of that length, bool. Paper App. C."""
    return update < NEAR_ZERO * stream


def value_drain(outliers: Array, others: Array) -> Array:
    """`‖v_outlier‖ / mean ‖v_other‖` per head, from the mean length of either's values; NaN where those of the others are 0. Paper §4."""
    return np.where(others > 0, outliers / np.where(others > 0, others, 1.0), np.nan)


def overlap(activation_T: np.ndarray, attention_HxT: np.ndarray) -> np.ndarray:
    """Share of a sequence's outlier tokens that are attention outliers, per head (H,); NaN without outlier tokens. Paper B.2.

    Any two index sets compare like this; leading axes of both are sequences.
    """
    count = activation_T.sum(axis=-1)[..., None]
    shared = (activation_T[..., None, :] & attention_HxT).sum(axis=-1)
    return np.where(count > 0, shared / np.maximum(count, 1), np.nan)


def intersection_over_union(activation_T: np.ndarray, attention_HxT: np.ndarray) -> np.ndarray:
    """Jaccard index of the two sets, per head (H,); NaN where both are empty. Leading axes of both are sequences."""
    union = (activation_T[..., None, :] | attention_HxT).sum(axis=-1)
    shared = (activation_T[..., None, :] & attention_HxT).sum(axis=-1)
    return np.where(union > 0, shared / np.maximum(union, 1), np.nan)


def severity(mean_C: np.ndarray, variance_C: np.ndarray) -> float:
    """`γ = ‖mean‖ / ‖std‖` over tokens: how far what all tokens share outweighs what differs between them; 0 where both are 0, inf where
    all tokens are equal."""
    shared, differing = np.sqrt((mean_C**2).sum()), np.sqrt(variance_C.sum())
    return float(shared / differing) if differing > 0 else float("inf" if shared > 0 else 0.0)


def neuron_rms_kurtosis(power_C: np.ndarray) -> float:
    """`mean r⁴ / (mean r²)²` of the channels' mean squares r²; 1 when all are equal, C when one holds all, 0 without any. He et al. 2024."""
    # Over the mean first, which is exact in any unit; `mean ** 2` is the C library's pow, which rounds one value in thousands otherwise.
    return float(((power_C / power_C.mean()) ** 2).mean()) if power_C.any() else 0.0


def excess_kurtosis(fourth: Array, variance: Array) -> Array:
    """Fourth central moment over the squared second minus 3; 0 for a normal distribution, and for a constant."""
    xp = variance.__array_namespace__()
    some = variance > 0
    return xp.where(some, fourth / xp.where(some, variance**2, 1.0) - 3.0, 0.0)


def main_part(parts: np.ndarray) -> np.ndarray:
    """Indices of the smallest set whose sum reaches `MAIN_SHARE` of all positive parts, largest first."""
    order = np.argsort(-parts, kind="stable")
    positive = np.maximum(parts[order], 0.0)
    if not positive.any():
        return order[:0]
    return order[: int(np.searchsorted(np.cumsum(positive), MAIN_SHARE * positive.sum())) + 1]
