"""Small random models of both families for tests that need any model, with weights wide enough for mistakes to show."""

import jax
import jax.numpy as jnp
import numpy as np

import sysout_jax as so
from sysout_jax.config import Gpt2Config, LlamaConfig, ModelConfig
from sysout_jax.models import build
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


def random_model(name: str, seed: int, dtype: str = "float32") -> so.LanguageModel:
    """A model of the table with random weights, biases and norm scales."""
    config = RANDOM[name]
    params = build(config).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: 2 * x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
    )
    return so.LanguageModel(config, InMemory(params), dtype=dtype, name=name)
