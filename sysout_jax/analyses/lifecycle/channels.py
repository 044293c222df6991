"""Which channels of an MLP write to the followed dims, and how much each of them adds; also where experts or a norm after the MLP take part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.analyses.lifecycle.targets import Targets
from sysout_jax.nonfinite import finite_or

KEPT_CHANNELS = 64  # strongest channels kept per layer and dim


@dataclass(frozen=True)
class LayerChannels:
    """What the strongest channels of one layer's MLP add to each followed dim, at each followed token."""

    indices: np.ndarray  # (C,) int channels that are among the strongest for some dim
    #: (E, M, P, C) W_down[d, c] · x_down[c], times what a norm after the MLP multiplies d with
    added: np.ndarray
    #: (E, M, C), as gate and up NaN in channels of experts that the token does not go through
    x_down: np.ndarray
    gate: np.ndarray | None  # (E, M, C) before the activation function; None without a gate
    up: np.ndarray  # (E, M, C)


def channels_of(
    kernel_FxD: np.ndarray, targets: Targets, seen: dict[str, np.ndarray]
) -> LayerChannels:
    """Keep the channels that add most, in magnitude, to some followed dim."""
    columns_FxP = finite_or(kernel_FxD[:, targets.dims].astype(np.float32), np.nan)
    weight = targets.valid[..., None].astype(np.float32)
    gain_ExMxP = seen.get("down_gain")
    strength_FxP = _met(seen, weight, len(kernel_FxD)) * np.abs(finite_or(columns_FxP))
    kept = np.unique(np.argsort(-strength_FxP, axis=0, kind="stable")[:KEPT_CHANNELS])
    x_down, share = _at_channels(seen, "x_down", kept), _shares(seen, kept)
    added = x_down[:, :, None, :] * columns_FxP[kept].T
    if share is not None:  # experts that a token does not go through add nothing
        added = np.where(share[:, :, None] > 0, added * share[:, :, None], 0.0)
    return LayerChannels(
        indices=kept,
        added=added if gain_ExMxP is None else added * gain_ExMxP[..., None],
        x_down=x_down,
        gate=_at_channels(seen, "gate", kept) if "gate" in seen else None,
        up=_at_channels(seen, "up", kept),
    )


def _met(seen: dict[str, np.ndarray], weight_ExMx1: np.ndarray, channels: int) -> np.ndarray:
    """(F, P) or (F, 1) what a column of W_down is multiplied with at all followed tokens together, in magnitude."""
    gain_ExMxP = seen.get("down_gain")
    if "expert" not in seen:
        x = finite_or(seen["x_down"] * weight_ExMx1)
        if gain_ExMxP is None:
            return np.abs(x).sum((0, 1))[:, None]
        return np.einsum("emf,emp->fp", np.abs(x), np.abs(finite_or(gain_ExMxP)))
    x_ExMxRxF = np.abs(
        finite_or(seen["x_down"] * (seen["expert_weight"] * weight_ExMx1)[..., None])
    )
    gain = np.ones_like(weight_ExMx1) if gain_ExMxP is None else np.abs(finite_or(gain_ExMxP))
    F = x_ExMxRxF.shape[-1]
    met = np.zeros((channels // F, F, gain.shape[-1]), np.float32)
    for place in np.ndindex(x_ExMxRxF.shape[:3]):
        met[seen["expert"][place]] += x_ExMxRxF[place][:, None] * gain[place[:2]]
    return met.reshape(channels, -1)


def _at_channels(seen: dict[str, np.ndarray], name: str, kept_C: np.ndarray) -> np.ndarray:
    """(E, M, C) values of channels; NaN in experts that the token does not go through."""
    if "expert" not in seen:
        return np.asarray(seen[name][..., kept_C])
    F = seen[name].shape[-1]
    here_ExMxRxC = seen["expert"][..., None] == kept_C // F
    values_ExMxRxC = seen[name][..., kept_C % F]
    return np.where(
        here_ExMxRxC.any(2), np.where(here_ExMxRxC, values_ExMxRxC, 0.0).sum(2), np.nan
    ).astype(np.float32)


def _shares(seen: dict[str, np.ndarray], kept_C: np.ndarray) -> np.ndarray | None:
    """(E, M, C) weight of each channel's expert at the followed tokens, 0 where they do not go through it; None without experts."""
    if "expert" not in seen:
        return None
    here_ExMxRxC = seen["expert"][..., None] == kept_C // seen["x_down"].shape[-1]
    return np.where(here_ExMxRxC, seen["expert_weight"][..., None], 0.0).sum(2)
