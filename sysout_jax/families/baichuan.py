"""Baichuan 7B and Baichuan 2 7B: LLaMA with q, k and v in one matrix; the head of Baichuan 2 has rows of length 1 (Yang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families import llama
from sysout_jax.families.family import Family, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import LINEAR, Form, Stored, fused
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary

#: By which Baichuan 2 is told, whose config.json is that of Baichuan otherwise.
VOCAB_OF_2 = 125_696
_NORM_FLOOR = 1e-12  # torch's


@dataclass(frozen=True, kw_only=True)
class BaichuanConfig(LlamaConfig):
    """LLaMA's."""

    family: str = "baichuan"


def read(fields: Fields) -> BaichuanConfig:
    if not fields.has("max_position_embeddings"):
        raise InputError(
            "field max_position_embeddings is missing, as in Baichuan 13B, whose ALiBi is not implemented; expected Baichuan 7B"
        )
    fields.must_be("hidden_act", "silu")
    fields.take_any("model_max_length")  # what the tokenizer cuts at
    return BaichuanConfig(**read_rotary(fields))


def _head(x_VxD: np.ndarray, config: ModelConfig) -> np.ndarray:
    if config.vocab_size != VOCAB_OF_2:
        return x_VxD.T
    rows_VxD = x_VxD.astype(np.float32)
    length_Vx1 = np.linalg.norm(rows_VxD, axis=1, keepdims=True)
    return (rows_VxD / np.maximum(length_Vx1, _NORM_FLOOR)).T


NAMES = {
    **llama.NAMES,
    **fused("layer_{l}/attn", "model.layers.{l}.self_attn.W_pack", grouped=False),
    "lm_head/kernel": Stored("lm_head.weight", Form(LINEAR.shapes, _head, LINEAR.theirs)),
}
FAMILY = Family(
    BaichuanConfig,
    {
        "baichuan": Layout(
            read, NAMES, "model.", classes=("BaiChuanForCausalLM", "BaichuanForCausalLM")
        )
    },
)
