"""Small random models for property tests: wild enough that attention is far from uniform."""

from __future__ import annotations

import dataclasses

import numpy as np

import sysout_jax as so
from sysout_jax.config import ModelConfig
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.rope_scaling import RopeScaling
from sysout_jax.weights import InMemory
from tests.random_models import random_params

SMALL = {"vocab_size": 11, "context_length": 40, "d_model": 8, "d_ff": 12, "num_layers": 2}

CONFIGS: dict[str, ModelConfig] = {
    "llama": LlamaConfig(num_heads=4, num_kv_heads=2, head_dim=4, **SMALL),
    "llama-mha-biases": LlamaConfig(
        num_heads=2,
        num_kv_heads=2,
        head_dim=6,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        rope_scaling=RopeScaling(kind="linear", factor=2.0),
        **SMALL,
    ),
    "llama-mqa-tied": LlamaConfig(
        num_heads=3, num_kv_heads=1, head_dim=2, tied_embeddings=True, **SMALL
    ),
    "gpt2": Gpt2Config(num_heads=2, **SMALL),
    "gpt2-nanogpt": Gpt2Config(num_heads=4, bias=False, activation="gelu", **SMALL),
    "gpt2-untied": Gpt2Config(num_heads=1, tied_embeddings=False, **SMALL),
}


def random_model(name: str, seed: int, dtype: str = "float32", **changes) -> so.LanguageModel:
    """A model of the table, its config changed as told."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    return so.LanguageModel(config, InMemory(random_params(config, seed, dtype)), dtype=dtype)


def random_tokens(seed: int, batch: int = 2, length: int = 13) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, SMALL["vocab_size"], (batch, length), dtype=np.int32)
