"""The definitions of outliers once more, slowly, on whole tensors in float64: what the library's reductions are held against."""

from __future__ import annotations

import numpy as np

from sysout_jax.outliers.definitions import intersection_over_union, overlap

__all__ = ["intersection_over_union", "overlap"]


def activation_outliers(x_TxC: np.ndarray, tau: float) -> np.ndarray:
    """`|x| > τ · mean|x|` over one sequence; bool (T, C)."""
    return np.abs(x_TxC) > tau * np.abs(x_TxC).mean()


def massive_activations(x_TxC: np.ndarray) -> np.ndarray:
    """`|x| > 100` and `|x| > 1000 · median|x|` over one sequence; bool (T, C)."""
    return (np.abs(x_TxC) > 100) & (np.abs(x_TxC) > 1000 * np.median(np.abs(x_TxC)))


def weight_outliers(w_OxI: np.ndarray, tau: float) -> np.ndarray:
    """`|w_ij| > τ · mean_j|w_ij|`, each output row against its own mean; bool (O, I)."""
    return np.abs(w_OxI) > tau * np.abs(w_OxI).mean(axis=1, keepdims=True)


def extremal_ratios(w_OxI: np.ndarray, axis: int) -> np.ndarray:
    """`max|w| / mean|w|` of every column (axis 0) or every row (axis 1)."""
    return np.abs(w_OxI).max(axis=axis) / np.abs(w_OxI).mean(axis=axis)


def attention_outliers(cumulative_HxT: np.ndarray, tau: float) -> np.ndarray:
    """Keys whose column sum exceeds τ times the head's mean column sum; bool (H, T)."""
    return cumulative_HxT > tau * cumulative_HxT.mean(axis=-1, keepdims=True)


def attention_outliers_of_code(cumulative_HxT: np.ndarray) -> np.ndarray:
    """Keys whose head-mean column sum is at least T/10; bool (T,)."""
    return cumulative_HxT.mean(axis=0) >= 0.1 * cumulative_HxT.shape[-1]


def neuron_rms_kurtosis(x_TxC: np.ndarray) -> float:
    """`mean r⁴ / (mean r²)²` of the channels' root mean squares r."""
    power = (x_TxC.astype(np.float64) ** 2).mean(axis=0)
    return float((power**2).mean() / power.mean() ** 2)


def excess_kurtosis(x: np.ndarray) -> float:
    """Fourth standardised moment minus 3, over all elements."""
    centred = x.astype(np.float64) - x.mean(dtype=np.float64)
    return float((centred**4).mean() / (centred**2).mean() ** 2 - 3.0)
