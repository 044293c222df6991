"""Small random models of both families for tests that need any model, with weights wide enough for mistakes to show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import sysout_jax as so
from sysout_jax.config import ModelConfig
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models import parameter_shapes
from sysout_jax.weights import InMemory

_SIZE = {
    "vocab_size": 61,
    "context_length": 128,
    "d_model": 48,
    "d_ff": 80,
    "num_layers": 3,
    "num_heads": 4,
}

RANDOM: dict[str, ModelConfig] = {
    "llama-mha": LlamaConfig(**_SIZE, num_kv_heads=4, head_dim=12),
    "llama-gqa": LlamaConfig(**_SIZE, num_kv_heads=2, head_dim=16, tied_embeddings=True),
    "llama-mqa": LlamaConfig(**_SIZE, num_kv_heads=1, head_dim=12, qkv_bias=True, mlp_bias=True),
    "gpt2": Gpt2Config(**_SIZE),
    "gpt2-nobias": Gpt2Config(**_SIZE, bias=False, activation="gelu"),
}


def random_params(
    config: ModelConfig, seed: int, dtype="float32", *, std: float = 0.5, scale: float = 1.0
) -> dict:
    """Weights and biases from N(0, std), norm scales from N(scale, std); drawn, not traced as an initialisation is."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        mean = scale if path[-1].key == "scale" else 0.0
        return jnp.asarray(mean + std * rng.standard_normal(leaf.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, parameter_shapes(config))


def random_model(name: str, seed: int, dtype: str = "float32", **changes) -> so.LanguageModel:
    """A model of the table, its config changed as told, with random weights, biases and norm scales."""
    config = dataclasses.replace(RANDOM[name], **changes)
    params = random_params(config, seed, std=0.11, scale=2.0)
    return so.LanguageModel(config, InMemory(params), dtype=dtype, name=name)
