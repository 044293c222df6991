"""How parameters lie in foreign checkpoints: one small value per convention, readable in both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sysout_jax.config import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A convention of storing an array.

    `shapes` gives the shapes that our shape may have there, the usual one first; `ours` turns a stored array into our
    layout (a view where possible), `theirs` ours into the stored one.
    """

    shapes: Callable[[Shape], tuple[Shape, ...]]
    ours: Callable[[np.ndarray, ModelConfig], np.ndarray]
    theirs: Callable[[np.ndarray, ModelConfig], np.ndarray]


def _same(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x


def _transpose(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x.T


def _head_dim(config: ModelConfig) -> int:
    return config.layer(0).heads.head_dim


def _halves_from_pairs(x_KDhxD: np.ndarray, config: ModelConfig) -> np.ndarray:
    D, half = x_KDhxD.shape[1], _head_dim(config) // 2
    return x_KDhxD.reshape(-1, half, 2, D).transpose(3, 0, 2, 1).reshape(D, -1)


def _halves_from_pairs_1d(x_KDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    return _halves_from_pairs(x_KDh[:, None], config)[0]


def _pairs_from_halves_1d(x_KDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    return _pairs_from_halves(x_KDh[None], config)[:, 0]


def _pairs_from_halves(x_DxKDh: np.ndarray, config: ModelConfig) -> np.ndarray:
    D, half = x_DxKDh.shape[0], _head_dim(config) // 2
    return x_DxKDh.reshape(D, -1, 2, half).transpose(1, 3, 2, 0).reshape(-1, D)


#: The very same array.
SAME = Form(lambda shape: (shape,), _same, _same)

#: torch.nn.Linear: (out, in); our kernels are (in, out).
LINEAR = Form(lambda shape: (shape[::-1],), _transpose, _transpose)

#: A Linear whose outputs are rotated in neighbouring pairs (2i, 2i + 1), as Meta's code does; ours turns (i, i + Dh/2).
PAIRED_LINEAR = Form(lambda shape: (shape[::-1],), _halves_from_pairs, _pairs_from_halves)

#: The bias of such a Linear.
PAIRED = Form(lambda shape: (shape,), _halves_from_pairs_1d, _pairs_from_halves_1d)

#: One vector per head, (H, Dh): the paper's code holds it as (1, H, 1, Dh), or flat with the heads side by side.
PER_HEAD = Form(
    lambda shape: ((1, shape[0], 1, shape[1]), (shape[0] * shape[1],), shape),
    lambda x, config: x.reshape(config.num_heads, -1),
    lambda x, config: x[None, :, None, :],
)


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a foreign checkpoint and in which form."""

    name: str
    form: Form = SAME


def linear(name: str) -> Stored:
    """A torch.nn.Linear's weight."""
    return Stored(name, LINEAR)
