"""Weights that a narrower number format has no number for are counted and refused, never written as inf."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.hf_export import save_hugging_face
from sysout_jax.weights import InMemory
from tests.convert.command import everything_below, run_here
from tests.parity_cases import FIXTURES

FIRST, SECOND = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"
SAVE = {"orbax": checkpoint.save, "hf": save_hugging_face}


def large(directory, value: float, dtype=np.float32) -> None:
    """Two large weights in one layer, one in another; inf and NaN of the model's own beside them."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.astype(dtype) for name, tensor in load_file(path).items()}
    tensors[FIRST][0, :4] = value, -value, np.inf, np.nan
    tensors[SECOND][1, 0] = value
    save_file(tensors, path)


@pytest.mark.parametrize("format", SAVE)
@pytest.mark.parametrize(
    ("stored", "value", "dtype"),
    [
        (np.float32, 1e5, "float16"),
        (np.float32, 65520.0, "float16"),  # rounds up
        (ml_dtypes.bfloat16, 1e5, "float16"),
        (np.float32, 3.4e38, "bfloat16"),
        (np.float64, 1e300, "float32"),
        (np.float64, 1e300, "float16"),
    ],
)
def test_counted_and_refused(stored, value, dtype, format, hf_copy, tmp_path, monkeypatch, capfd):
    src = hf_copy("llama-mha")
    large(src, value, stored)
    args = ("--src", src, "--out", tmp_path / "out" / "new", "--dtype", dtype, "--format", format)
    before = everything_below(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_here(monkeypatch, *args) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "3 weights in 2 parameters, first layer_0/mlp/up_proj/kernel" in said.err
    assert f"largest {dtype}" in said.err
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("format", SAVE)
def test_what_fits_and_what_is_the_models_own_is_written_and_said(
    format, hf_copy, tmp_path, monkeypatch, capsys
):
    src = hf_copy("llama-mha")
    large(src, 65519.0)  # the largest that rounds to a float16
    args = ("--src", src, "--out", tmp_path / "out", "--dtype", "float16", "--format", format)
    assert run_here(monkeypatch, *args) == 0
    kernel = so.load(tmp_path / "out").params["layer_0"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[:4, 0], [65504, -65504, np.inf, np.nan])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "2 weights in 1 parameter, first layer_0/mlp/up_proj/kernel, hold NaN or inf" in said


@pytest.mark.parametrize("format", SAVE)
def test_device_arrays(format, tmp_path):
    model = so.load(FIXTURES / "gpt2")
    params = jax.tree.map(jnp.asarray, model.params)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e6)
    with (
        warnings.catch_warnings(),
        pytest.raises(so.InputError, match="1 weight in 1 parameter, first final_norm/scale"),
    ):
        warnings.simplefilter("error")
        SAVE[format](tmp_path / "out", model.config, InMemory(params), "float16")
