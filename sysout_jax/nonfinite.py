"""NaN and inf in weights and activations: counted while a pass reads and computes them, gathered in one small value.

A sum of `x · 0` is NaN exactly where some x is not finite, and costs one sweep. Only where it is are elements counted one by one, and weights
read once more as they are stored, which tells what the file holds from what the cast to the dtype of compute made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from sysout_jax.config import ModelConfig
from sysout_jax.numerics.sweeps import count

PLACES = ("h", "x_down")


@dataclass(frozen=True)
class Damaged:
    """A tensor that holds NaN or inf."""

    group: str  # embed, layer_0, …, final_norm, lm_head
    tensor: str  # below the group: mlp/down_proj/kernel
    size: int
    nan: int  # as stored
    inf: int  # as stored
    cast: int  # finite as stored, but beyond the range of the dtype of compute


@dataclass(frozen=True)
class Element:
    """Where a value of an activation stands. Everything is 0-based."""

    layer: int
    sequence: int
    token: int
    channel: int


@dataclass(frozen=True)
class Counts:
    """NaN and inf of one place in L layers."""

    nan: tuple[int, ...]  # (L,)
    inf: tuple[int, ...]  # (L,)
    size: int  # elements of one layer, all sequences together
    first: Element | None

    @property
    def total(self) -> int:
        return sum(self.nan) + sum(self.inf)

    @property
    def share(self) -> float:
        """Of all elements from the first layer on that holds any; 0 where none does."""
        if self.first is None:
            return 0.0
        return self.total / (self.size * len(self.nan[self.first.layer :]))


@dataclass(frozen=True)
class Nonfinite:
    """What one pass met. Statistics leave all of it out."""

    dtype: str  # of weights and compute
    weights: tuple[Damaged, ...]
    h: Counts
    x_down: Counts
    predicted: int  # next tokens whose likelihood was asked for
    unpredicted: int  # those of them for which it is NaN or inf

    @property
    def any(self) -> bool:
        return bool(self.weights or self.h.total or self.x_down.total or self.unpredicted)

    @property
    def everything(self) -> bool:
        """Is no element of h finite in any layer? Then nothing is measured."""
        return self.h.total == self.h.size * len(self.h.nan) > 0

    @property
    def overflowed(self) -> bool:
        """Did activations leave the range of the dtype on their own: no weight of their layer or of one before it is damaged?"""
        if self.h.first is None:
            return False
        before = {f"layer_{layer}" for layer in range(self.h.first.layer + 1)} | {
            "embed",
            "positions",
        }
        return not any(weights.group in before for weights in self.weights)


def pooled(parts: Sequence[Nonfinite]) -> Nonfinite:
    """One value for passes of one model over several texts; the first place is that of the first text that has one."""

    def place(name: str) -> Counts:
        counts = [getattr(part, name) for part in parts]
        return Counts(
            nan=tuple(map(sum, zip(*(c.nan for c in counts), strict=True))),
            inf=tuple(map(sum, zip(*(c.inf for c in counts), strict=True))),
            size=sum(c.size for c in counts),
            first=min((c.first for c in counts if c.first), default=None, key=lambda at: at.layer),
        )

    return Nonfinite(
        dtype=parts[0].dtype,
        weights=parts[0].weights,
        h=place("h"),
        x_down=place("x_down"),
        predicted=sum(part.predicted for part in parts),
        unpredicted=sum(part.unpredicted for part in parts),
    )


@jax.jit
def suspicious(params: Any) -> jax.Array:
    """Does any parameter hold NaN or inf? bool ()."""
    floating = [
        leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.isnan(sum((leaf * 0).sum(dtype=jnp.float32) for leaf in floating))


def count_weights(group: str, params: Mapping, stored: Mapping) -> tuple[Damaged, ...]:
    """The damaged tensors of a group: `params` in the dtype of compute, `stored` the same without a cast that loses anything."""
    originals = flatten_dict(stored, sep="/")
    damaged = []
    for name, leaf in flatten_dict(params, sep="/").items():
        values = np.asarray(leaf)
        if not jnp.issubdtype(values.dtype, jnp.floating) or np.isfinite(values).all():
            continue
        original = np.asarray(originals[name])
        nan, inf = int(np.isnan(original).sum()), int(np.isinf(original).sum())
        cast = int((~np.isfinite(values)).sum()) - nan - inf
        damaged.append(Damaged(group, name, values.size, nan, inf, cast))
    return tuple(damaged)


def count_activations(places: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Of each of `PLACES` (B, T, C), per sequence: how many are NaN, how many inf, token and channel of the first one, −1 without.

    (B, 4) int32 by place; inside the block step. What is not finite in x_down is not finite in h, so that h alone is watched.
    """

    def counted(x_BxTxC: jax.Array) -> jax.Array:
        bad = ~jnp.isfinite(x_BxTxC)
        # first the row and then in it, so that nothing as large as x is written out
        token = jnp.argmax(bad.any(2), axis=1)
        channel = jnp.argmax(jnp.take_along_axis(bad, token[:, None, None], axis=1)[:, 0], axis=1)
        some = bad.any((1, 2))
        at = [jnp.where(some, token, -1), jnp.where(some, channel, -1)]
        numbers = (count(jnp.isnan(x_BxTxC)), count(jnp.isinf(x_BxTxC)), *at)
        return jnp.stack([number.astype(jnp.int32) for number in numbers], axis=1)

    def counted_in_experts(x_BxTxRxF: jax.Array) -> jax.Array:
        B, T, R, F = x_BxTxRxF.shape
        found_Bx4 = counted(x_BxTxRxF.reshape(B, T * R, F))
        row_B = found_Bx4[:, 2]
        expert_B = jnp.take_along_axis(places["expert"].reshape(B, T * R), row_B[:, None], axis=1)[
            :, 0
        ]
        channel_B = jnp.where(row_B < 0, -1, expert_B * F + found_Bx4[:, 3])
        return jnp.stack([*found_Bx4[:, :2].T, row_B // R, channel_B], axis=1)

    def look(name: str) -> jax.Array:
        return (counted if places[name].ndim == 3 else counted_in_experts)(places[name])

    return jax.lax.cond(
        jnp.isnan((places["h"] * 0).sum(dtype=jnp.float32)),
        lambda: {name: look(name) for name in PLACES},
        lambda: {
            name: jnp.array([[0, 0, -1, -1]] * len(places[name]), jnp.int32) for name in PLACES
        },
    )


class Watch:
    """What a stream of N sequences has met so far."""

    def __init__(self, num_sequences: int):
        self.num_sequences = num_sequences
        self.counted: dict[int, list[dict[str, jax.Array]]] = {}  # by layer; one for each batch
        self.nll_NxT: np.ndarray | None = None  # where it was asked for

    def before(self, layer: int) -> Watch:
        """Another one, which starts from what came before `layer`."""
        other = Watch(self.num_sequences)
        other.counted = {at: batches for at, batches in self.counted.items() if at < layer}
        return other

    def add(self, layer: int, batch: dict[str, jax.Array]) -> None:
        """What `count_activations` gave for the next batch in a layer. Nothing waits for the device."""
        self.counted.setdefault(layer, []).append(batch)

    def join(
        self, config: ModelConfig, length: int, dtype: Any, weights: tuple[Damaged, ...]
    ) -> Nonfinite:
        mlp = config.layer(0).mlp
        h, x_down = (
            self._place(name, config.num_layers, length, width)
            for name, width in (("h", config.d_model), ("x_down", mlp.rows * mlp.width))
        )
        nll_NxT = np.zeros(0) if self.nll_NxT is None else self.nll_NxT
        unpredicted = int((~np.isfinite(nll_NxT)).sum())
        name = jnp.dtype(dtype).name
        return Nonfinite(name, weights, h, x_down, nll_NxT.size, unpredicted)

    def _place(self, name: str, num_layers: int, length: int, width: int) -> Counts:
        nan, inf = [0] * num_layers, [0] * num_layers
        first = None
        for layer, batches in sorted(self.counted.items()):
            # rows beyond the sequences only fill up the devices
            rows_Nx4 = np.concatenate([np.asarray(b[name]) for b in batches])[: self.num_sequences]
            nan[layer], inf[layer] = map(int, rows_Nx4[:, :2].sum(axis=0, dtype=np.int64))
            where = np.flatnonzero(rows_Nx4[:, 2] >= 0)
            if first is None and len(where):
                token, channel = map(int, rows_Nx4[where[0], 2:])
                first = Element(layer, int(where[0]), token, channel)
        return Counts(tuple(nan), tuple(inf), self.num_sequences * length * width, first)


def finite_or(values: Any, fill: float = 0.0) -> np.ndarray:
    """A copy with `fill` in place of NaN and inf."""
    return np.where(np.isfinite(values), values, fill)
