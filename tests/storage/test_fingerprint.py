"""The checksum of values: equal wherever the array lies, different for any flipped, moved or swapped word."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sysout_jax.storage.fingerprint import CHUNK, SPREAD, _on_device, fingerprint, fingerprints


def written_out(array: np.ndarray) -> int:
    """The formula, word by word."""
    size = min(array.dtype.itemsize, 4)
    words = np.frombuffer(array.tobytes(), f"<u{size}")
    return sum(int(b) * (2 * SPREAD * i + 1) for i, b in enumerate(words)) % 2**32


@pytest.mark.parametrize(
    "dtype",
    ["float32", ml_dtypes.bfloat16, "float16", "int8", "uint16", "bool", "float64", "int64"],
)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 4)])
def test_equals_the_formula_on_host_and_device(dtype, shape):
    rng = np.random.default_rng(len(shape))
    array = np.asarray(rng.standard_normal(shape) * 3).astype(dtype)
    want = written_out(array)
    assert fingerprint(array) == want
    with jax.enable_x64(array.dtype.itemsize == 8):
        assert fingerprint(jnp.asarray(array)) == want
        assert int(_on_device(jnp.asarray(array))) == want


def test_arrays_longer_than_one_chunk():
    array = np.random.default_rng(0).standard_normal(2 * CHUNK + 17).astype(np.float32)
    assert fingerprint(array) == written_out(array) == fingerprint(jnp.asarray(array))
    assert int(_on_device(jnp.asarray(array))) == written_out(array)


def test_layout_in_memory_does_not_count():
    array = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert fingerprint(np.asfortranarray(array)) == fingerprint(array)


def test_every_single_flipped_bit_shows():
    array = np.random.default_rng(1).standard_normal((3, 11)).astype(np.float32)
    want = fingerprint(array)
    for word in range(array.size):
        for bit in range(32):
            flipped = array.copy().reshape(-1).view(np.uint32)
            flipped[word] ^= np.uint32(1 << bit)
            assert fingerprint(flipped.view(np.float32).reshape(array.shape)) != want


def test_swapped_and_moved_words_show():
    array = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    assert fingerprint(array[::-1]) != fingerprint(array)
    assert fingerprint(array.T) != fingerprint(array)
    assert fingerprint(np.roll(array, 1)) != fingerprint(array)


def test_a_tree_by_paths():
    tree = {"a": {"b": np.ones(3, np.float32)}, "c": jnp.arange(4)}
    assert fingerprints(tree) == {
        "a/b": fingerprint(np.ones(3, np.float32)),
        "c": fingerprint(np.arange(4, dtype=np.int32)),
    }


def test_sharding_does_not_count():
    device = jax.devices()[:1]
    mesh = jax.make_mesh((1,), ("x",), devices=device)
    array = np.random.default_rng(3).standard_normal((8, 6)).astype(np.float32)
    laid = jax.device_put(array, NamedSharding(mesh, P("x")))
    assert fingerprint(laid) == fingerprint(array)
