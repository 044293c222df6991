"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): divide input channels by s and multiply the weights that read them, exactly.

    s_j = max|X_j|^α / max|W_j|^(1−α)      over calibration tokens and over all matrices that read channel j

1/s goes into what produces the channel. As published that is a norm: the one before q, k, v (and `scale_proj` of context-aware
scaling), the one before gate and up (and the router of experts); they are one in a parallel block. A gated down projection can be smoothed as well, because its input
is linear in the output of `up_proj`; without a gate an activation function lies between. The output projection is never smoothed: heads of one group share their values.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sysout_jax.models.spec import LayerSpec, NormSpec

#: Channels that are never used, or weights of zero, would give no or an infinite scale.
FLOOR = 1e-5


def folds(spec: LayerSpec, params: dict, down: bool = False) -> dict[str, tuple[str, ...]]:
    """Which operation of this layer takes 1/s of which linear layers; `down` adds the down projection of a gated MLP.

    Nothing where no norm stands before them that multiplies by a scale (OLMo), so that 1/s has no place to go.
    """
    readers_of: dict[str, list[str]] = {}
    for matrix in spec.matrices:
        if matrix.fed_by is None or (matrix.name == "down" and not down):
            continue
        readers = readers_of.setdefault(matrix.fed_by, [])
        if matrix.path not in readers:  # fused ones
            readers.append(matrix.path)
    if "attn_norm" in readers_of and "scale_proj" in params["attn"]:
        readers_of["attn_norm"].append("attn/scale_proj")
    norms = {"attn_norm": spec.attn_norm, "mlp_norm": spec.mlp_norm}
    return {
        previous: tuple(readers)
        for previous, readers in readers_of.items()
        if not (isinstance(norm := norms.get(previous), NormSpec) and not norm.scale)
    }


def smooth(
    spec: LayerSpec,
    params: dict,
    maxima: Mapping[str, np.ndarray],
    alpha: float,
    down: bool = False,
) -> tuple[dict, dict[str, np.ndarray]]:
    """A layer's parameters after smoothing, and the input maxima that go with them. Its output is unchanged up to rounding.

    `maxima` are those of `calibrate`; `alpha` from 0 (weights keep their range) to 1 (activations give up theirs). ValueError outside.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha:g}; expected a migration strength from 0 to 1")
    flat = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
    norms = {"attn_norm": spec.attn_norm, "mlp_norm": spec.mlp_norm}
    maxima = dict(maxima)
    for previous, readers in folds(spec, params, down).items():
        kernels = [np.abs(flat[f"{name}/kernel"].astype(np.float64)) for name in readers]
        s_I = scales(maxima[readers[0]], np.max([k.max(axis=1) for k in kernels], axis=0), alpha)
        for name in readers:
            _multiply(flat, f"{name}/kernel", s_I[:, None])
            maxima[name] = (maxima[name] / s_I).astype(np.float32)
        for name in ("mlp/router", "mlp/shared_gate"):  # they read what the experts read
            if "mlp/up_proj" in readers and name in flat:
                _multiply(flat, name, s_I[:, None])
        norm = norms.get(previous)
        if norm is None:
            _multiply(flat, f"{previous}/kernel", 1 / s_I[None])
        else:
            _multiply(flat, f"{previous}/scale", 1 / s_I, norm.offset)
        if f"{previous}/bias" in flat:
            _multiply(flat, f"{previous}/bias", 1 / s_I)
    return unflatten_dict(flat, sep="/"), maxima


def scales(input_max_I: np.ndarray, weight_max_I: np.ndarray, alpha: float) -> np.ndarray:
    """(I,) float64 s of every channel."""
    activations = np.maximum(input_max_I.astype(np.float64), FLOOR)
    return activations**alpha / np.maximum(weight_max_I, FLOOR) ** (1 - alpha)


def _multiply(
    flat: dict[str, np.ndarray], name: str, factor: np.ndarray, offset: float = 0.0
) -> None:
    """Of what is stored less `offset`."""
    whole = flat[name] + offset if offset else flat[name]
    flat[name] = (whole * factor - offset).astype(flat[name].dtype)
