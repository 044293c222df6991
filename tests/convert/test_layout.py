"""Copies of stored arrays: numpy's own result, aligned, whatever lies where."""

import ml_dtypes
import numpy as np
import pytest

from sysout_jax.checkpoints.formats import layout
from sysout_jax.checkpoints.formats.layout import ALIGNMENT, laid_out


@pytest.mark.parametrize("tile", [7, 256])
@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (3, 600), (257, 256), (40, 1), (2, 3, 4)])
@pytest.mark.parametrize("stored", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_equals_a_plain_copy(tile, shape, stored, dtype, monkeypatch):
    monkeypatch.setattr(layout, "TILE", tile)
    x = np.asarray(np.random.default_rng().standard_normal(shape)).astype(stored)
    for view in (x, x.T, x[..., ::-1] if shape else x):
        copy = laid_out(view, dtype)
        assert copy.dtype == np.dtype(dtype) and copy.shape == view.shape
        assert copy.flags.c_contiguous and copy.ctypes.data % ALIGNMENT == 0
        assert copy.size == 0 or not np.shares_memory(copy, x)
        np.testing.assert_array_equal(
            copy.astype(np.float64), view.astype(dtype).astype(np.float64)
        )
