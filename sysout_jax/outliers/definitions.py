"""What counts as an outlier: every rule of the literature in one place, on plain arrays of one sequence.

The streaming reductions compute the same rules from reductions; tests hold them against these functions.
Sources: paper = An et al. 2025 (arXiv 2502.06415); Sun et al. 2024 (massive activations); Gu et al. 2024 (attention sinks);
He et al. 2024 (outlier features).
"""

from __future__ import annotations

import numpy as np

TAU = 1000.0
#: Every flag is reported at these thresholds too, whatever τ was asked for.
TAUS = (100.0, 300.0, 1000.0, 3000.0)
MASSIVE_VALUE = 100.0
MASSIVE_RATIO = 1000.0
SINK_SHARE = 0.3
CODE_SHARE = 0.1


def activation_outliers(x_TxC: np.ndarray, tau: float = TAU) -> np.ndarray:
    """`|x| > τ · mean|x|` over one sequence; bool (T, C). Paper §3."""
    magnitude = np.abs(x_TxC)
    return magnitude > tau * magnitude.mean()


def massive_activations(x_TxC: np.ndarray) -> np.ndarray:
    """`|x| > 100` and `|x| > 1000 · median|x|` over one sequence; bool (T, C). Sun et al. 2024."""
    magnitude = np.abs(x_TxC)
    return (magnitude > MASSIVE_VALUE) & (magnitude > MASSIVE_RATIO * np.median(magnitude))


def weight_outliers(w_OxI: np.ndarray, tau: float = TAU) -> np.ndarray:
    """`|w_ij| > τ · mean_j|w_ij|`, each output row against its own mean; bool (O, I). Paper §3."""
    magnitude = np.abs(w_OxI)
    return magnitude > tau * magnitude.mean(axis=1, keepdims=True)


def extremal_ratios(w_OxI: np.ndarray, axis: int = 0) -> np.ndarray:
    """`max|w| / mean|w|` of every column (axis 0, paper §3.2) or every row (axis 1)."""
    magnitude = np.abs(w_OxI)
    return magnitude.max(axis=axis) / magnitude.mean(axis=axis)


def attention_outliers(cumulative_HxT: np.ndarray, tau: float = TAU) -> np.ndarray:
    """Keys whose column sum exceeds τ times the head's mean column sum; bool (H, T). Paper §3."""
    return cumulative_HxT > tau * cumulative_HxT.mean(axis=-1, keepdims=True)


def attention_outliers_of_code(cumulative_HxT: np.ndarray) -> np.ndarray:
    """Keys whose head-mean column sum is at least T/10, the rule of the paper's published code; bool (T,)."""
    mean_T = cumulative_HxT.mean(axis=0)
    return mean_T >= CODE_SHARE * mean_T.shape[-1]


def sink_scores(cumulative_HxT: np.ndarray) -> np.ndarray:
    """`α_k = mean over queries i ≥ k of A_ik`, from column sums; (H, T). Gu et al. 2024."""
    T = cumulative_HxT.shape[-1]
    return cumulative_HxT / (T - np.arange(T))


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


def neuron_rms_kurtosis(x_TxC: np.ndarray) -> float:
    """`mean r⁴ / (mean r²)²` of the channels' root mean squares r; 1 when all are equal, C when one holds all. He et al. 2024."""
    power = (x_TxC.astype(np.float64) ** 2).mean(axis=0)
    return float((power**2).mean() / power.mean() ** 2)


def excess_kurtosis(x: np.ndarray) -> float:
    """Fourth standardised moment minus 3, over all elements; 0 for a normal distribution."""
    centred = x.astype(np.float64) - x.mean(dtype=np.float64)
    return float((centred**4).mean() / (centred**2).mean() ** 2 - 3.0)
