"""Models: what layers are made of (`spec`), the decoder built from it, its pieces."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from sysout_jax.config import ModelConfig
from sysout_jax.models.decoder import Block, Decoder
from sysout_jax.models.spec import LayerSpec


def build(
    config: ModelConfig, dtype: Any = jnp.float32, param_dtype: Any = None, kernel: str = "auto"
) -> Decoder:
    """The Flax module of a config; `dtype` is the compute dtype, `param_dtype` (default: the same) that of the weights."""
    dtype = jnp.dtype(dtype)
    return Decoder(config, dtype, jnp.dtype(param_dtype or dtype), kernel)


def parameter_shapes(config: ModelConfig) -> dict:
    """The nested dict of jax.ShapeDtypeStruct that the model's parameters must have; nothing is allocated."""
    ends = jax.tree.map(lambda leaf: leaf, _shapes_of_ends(replace(config, num_layers=1)))
    layers = {
        f"layer_{l}": jax.tree.map(lambda leaf: leaf, _shapes_of_layer(config, config.layer(l)))
        for l in range(config.num_layers)
    }
    return ends | layers


def parameter_count(shapes: Any, positions: bool = True) -> int:
    """Number of weights in a tree of arrays or shapes; without `positions` as nanoGPT and with it the paper counts."""
    counted = {name: part for name, part in shapes.items() if positions or name != "positions"}
    return sum(leaf.size for leaf in jax.tree.leaves(counted))


# Tracing every one of 32 equal layers takes seconds; all layers of one spec have the same shapes.
@functools.cache
def _shapes_of_ends(config: ModelConfig) -> dict:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    model = build(config, kernel="reference")
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return {name: part for name, part in shapes.items() if name != "layer_0"}


@functools.cache
def _shapes_of_layer(config: ModelConfig, spec: LayerSpec) -> dict:
    x = jax.ShapeDtypeStruct((1, 1, config.d_model), jnp.float32)
    dtype = jnp.dtype("float32")
    block = Block(config, spec, dtype, dtype, "reference")
    return jax.eval_shape(block.init, jax.random.key(0), x)["params"]
