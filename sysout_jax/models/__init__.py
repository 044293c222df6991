"""Model families, one readable file each, and the one dict that names them."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from sysout_jax.config import ModelConfig
from sysout_jax.models.gpt2 import Gpt2
from sysout_jax.models.llama import Llama

MODELS = {"llama": Llama, "gpt2": Gpt2}


def build(
    config: ModelConfig, dtype: Any = jnp.float32, param_dtype: Any = None, kernel: str = "auto"
) -> Llama | Gpt2:
    """The Flax module of a config; `dtype` is the compute dtype, `param_dtype` (default: the same) that of the weights."""
    dtype = jnp.dtype(dtype)
    return MODELS[config.family](config, dtype, jnp.dtype(param_dtype or dtype), kernel)


def parameter_shapes(config: ModelConfig) -> dict:
    """The nested dict of jax.ShapeDtypeStruct that the model's parameters must have; nothing is allocated."""
    shapes = jax.tree.map(lambda leaf: leaf, _shapes_with_one_layer(replace(config, num_layers=1)))
    layer = shapes.pop("layer_0")
    return shapes | {
        f"layer_{l}": jax.tree.map(lambda leaf: leaf, layer) for l in range(config.num_layers)
    }


@functools.cache
def _shapes_with_one_layer(config: ModelConfig) -> dict:
    """Tracing every one of 32 equal layers takes seconds; all of them have the shapes of one."""
    model = build(config, kernel="reference")
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
