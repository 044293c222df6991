"""What excites the channels of a birth: their rows of W_gate and W_up, and the input they meet (Figure 7)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from sysout_jax.analyses.lifecycle.channels import LayerChannels
from sysout_jax.analyses.lifecycle.targets import Targets
from sysout_jax.nonfinite import finite_or

COMPARED = 64  # tokens of each sequence, evenly spread, that outlier tokens are compared with
KEPT_ROWS = 16  # strongest channels of the birth layer whose rows of gate and up are kept


@dataclass(frozen=True)
class ChannelRows:
    """What excites the strongest channels of one layer's MLP: their rows of gate and up, and the input they meet (Figure 7)."""

    layer: int
    indices: np.ndarray  # (R,) int channels, strongest first
    gate: np.ndarray | None  # (R, D) rows of W_gate; None without a gate
    up: np.ndarray  # (R, D) rows of W_up
    x: np.ndarray  # (E, M, D) input of the MLP after the norm, at the followed tokens
    #: (E, S, R) product of the rows with the input at S tokens of the sequence; NaN at those that ever hold an outlier, or where the input is not finite
    gate_elsewhere: np.ndarray | None
    up_elsewhere: np.ndarray


def compared(length: int) -> np.ndarray:
    """(S,) positions of the tokens that outlier tokens are compared with."""
    return np.unique(np.linspace(0, length - 1, COMPARED).astype(int))


def rows_of(
    layer: int,
    kernels: dict[str, jax.Array],
    channels: LayerChannels,
    targets: Targets,
    seen: dict[str, np.ndarray],
) -> ChannelRows:
    """Of the channels that add most, in magnitude, to all followed dims together."""
    added = finite_or(np.abs(channels.added)) * targets.valid[..., None, None]
    strongest = np.argsort(-added.sum((0, 1, 2)), kind="stable")[:KEPT_ROWS]
    indices = channels.indices[strongest]

    def rows(name: str) -> np.ndarray:
        return finite_or(np.asarray(kernels[name])[:, indices].astype(np.float32).T, np.nan)

    outlier_NxT = np.asarray(targets.mask.any(axis=0))
    at_S = compared(outlier_NxT.shape[1])
    x_ExSxD = seen["elsewhere"]
    plain_ExS = ~outlier_NxT[targets.sequences][:, at_S] & np.isfinite(x_ExSxD).all(-1)

    def elsewhere(rows_RxD: np.ndarray) -> np.ndarray:
        products_ExSxR = finite_or(x_ExSxD) @ finite_or(rows_RxD).T
        return np.where(plain_ExS[..., None], products_ExSxR, np.nan)

    gate, up = rows("gate") if "gate" in kernels else None, rows("up")
    return ChannelRows(
        layer=layer,
        indices=indices,
        gate=gate,
        up=up,
        x=seen["mlp_in"],
        gate_elsewhere=None if gate is None else elsewhere(gate),
        up_elsewhere=elsewhere(up),
    )
