"""A checksum of an array's values that does not depend on how it is laid out: on which devices, in which files, by which process.

    F(x) = Σ_i b_i · (2C·i + 1)  mod 2³²

b_i are the bits of element i in C order, in words of 32 bits (16- and 8-bit numbers: one word each; 64-bit ones: two). Every factor is odd, so that
any flipped bits within one word change F; C spreads the factors, so that moved and swapped words do. Sums of integers are exact in any order: a mesh of
devices computes it without moving the array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

SPREAD = 0x9E3779B1  # C: 2³² over the golden ratio, made odd (Knuth's multiplicative hashing)
CHUNK = 1 << 16  # words that stay in the cache
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def fingerprint(array: Any) -> int:
    """F of one array, of any dtype and shape; device arrays are reduced where they lie, on all processes alike."""
    return int(_start(array))


def fingerprints(tree: Mapping[str, Any]) -> dict[str, int]:
    """F of every leaf of a nested dict, under its path (`mlp/up_proj/kernel`)."""
    flat = flatten_dict(tree, sep="/")
    # start all of them before waiting for one
    started = {path: _start(leaf) for path, leaf in flat.items()}
    return {path: int(value) for path, value in started.items()}


def _start(array: Any) -> jax.Array | int:
    if isinstance(array, jax.Array) and not _is_host_memory(array):
        return _on_device(array)
    return _on_host(np.asarray(array))


def _is_host_memory(array: jax.Array) -> bool:
    """Whether numpy sees the array without a copy; its loop over chunks is then several times faster than XLA's."""
    on: list[Any] = list(array.sharding.device_set)
    return array.is_fully_addressable and [device.platform for device in on] == ["cpu"]


@jax.jit
def _on_device(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])  # a last axis of 2 for 64 bits
    words = bits.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    step = 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place + along * np.uint32(step % 2**32)
        step *= words.shape[axis]
    factor = place * np.uint32(2 * SPREAD % 2**32) + np.uint32(1)
    return jnp.sum(words * factor, dtype=jnp.uint32)


def _on_host(array: np.ndarray) -> int:
    words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[array.dtype.itemsize])
    factors = np.arange(CHUNK, dtype=np.uint32) * np.uint32(2 * SPREAD % 2**32) + np.uint32(1)
    total, product = 0, np.empty(CHUNK, np.uint32)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK]
        here = product[: len(part)]
        np.multiply(part, factors[: len(part)], out=here, dtype=np.uint32)
        moved = int(part.sum(dtype=np.uint32)) * (2 * SPREAD * start)
        total += int(here.sum(dtype=np.uint32)) + moved
    return total % 2**32
