"""NVFP4 and MXFP4 against a written-out definition, bit by bit."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.compress.block_formats import BLOCK, BLOCK_FORMATS, block_weights, round_e2m1

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # by code
#: Codes 0 to 126: exponent 0 is subnormal, 127 is NaN.
E4M3 = [
    (m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
    for e in range(16)
    for m in range(8)
][:127]


def nearest(table, x: float) -> float:
    """Of a table in the order of its codes; ties to the even code. Exact: all differences are of float64."""
    distances = [abs(value - x) for value in table]
    least = min(distances)
    codes = [code for code, distance in enumerate(distances) if distance == least]
    return table[next(code for code in codes if len(codes) == 1 or code % 2 == 0)]


def written_out(column: np.ndarray, whole: float, kind: str) -> np.ndarray:
    """One output channel, block after block, in float32 where the definition divides."""
    out = np.zeros_like(column)
    for start in range(0, len(column), BLOCK[kind]):
        block = column[start : start + BLOCK[kind]]
        largest = np.abs(block).max()
        if largest == 0:
            continue
        if kind == "mxfp4":
            scale = np.float32(2.0 ** (math.floor(math.log2(float(largest))) - 2))
        else:
            unit = np.float32(whole) / np.float32(6 * 448)
            share = np.float32(largest) / np.float32(6) / unit
            scale = np.float32(nearest(E4M3, float(share))) * unit
        if scale == 0:
            continue
        for i, x in enumerate(block):
            code = nearest(E2M1, abs(float(np.float32(x) / scale)))
            out[start + i] = np.copysign(np.float32(code) * scale, x)
    return out


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_equals_the_definition_bit_by_bit(kind):
    rng = np.random.default_rng()
    kernel = (rng.standard_normal((70, 6)) * 2.0 ** rng.integers(-6, 7, (70, 6))).astype("f")
    kernel[:40, 2] = 0.0  # whole blocks of zeros
    kernel[3, 4] = 2.0**12  # an outlier
    kernel[:32, 5] = [2.0 ** (i % 5) * 0.75 for i in range(32)]  # ties
    want = np.stack([written_out(c, np.abs(kernel).max(), kind) for c in kernel.T], axis=1)
    found = np.asarray(block_weights(jnp.asarray(kernel), kind=kind))
    np.testing.assert_array_equal(found.view(np.uint32) << 1, want.view(np.uint32) << 1)  # −0 is 0
    assert len(np.unique(np.abs(found[:16, 0]))) <= 8


def test_ties_go_to_the_even_code():
    ties = [(a + b) / 2 for a, b in itertools.pairwise(E2M1)]
    want = [nearest(E2M1, tie) for tie in ties]
    assert want == [0, 1, 1, 2, 2, 4, 4]
    np.testing.assert_array_equal(round_e2m1(jnp.asarray(ties)), want)
    np.testing.assert_array_equal(
        round_e2m1(-jnp.asarray([*ties, 7.0, 1e9])), [-x for x in [*want, 6, 6]]
    )


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_kept_weights_enter_no_scale(kind):
    """With an outlier kept, the rest of its block is rounded as if it were not there; what is not finite stays."""
    rng = np.random.default_rng()
    kernel = rng.standard_normal((33, 3)).astype("f")
    plain = kernel.copy()
    kernel[5, 1], plain[5, 1] = 1e4, 0.0
    kept = kernel == 1e4
    found = np.asarray(block_weights(jnp.asarray(kernel), jnp.asarray(kept), kind=kind))
    want = np.where(kept, kernel, block_weights(jnp.asarray(plain), kind=kind))
    np.testing.assert_array_equal(found, want)
    kernel[7, 2] = np.nan
    assert np.isnan(block_weights(jnp.asarray(kernel), kind=kind)).sum() == 1


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_twice_is_once(kind):
    kernel = jnp.asarray(np.random.default_rng().standard_normal((64, 4)), jnp.float32)
    once = block_weights(kernel, kind=kind)
    if kind == "mxfp4":  # NVFP4's scales need not survive: a block's largest need not be 6 of them
        np.testing.assert_array_equal(block_weights(once, kind=kind), once)
    relative = jnp.abs(once - kernel).max() / jnp.abs(kernel).max()
    assert relative < 0.34  # half the widest step, 1 of 6, and what mxfp4 cuts off above 6
