"""Baichuan 7B and Baichuan 2 7B: LLaMA with q, k and v in one matrix; the head of Baichuan 2 has rows of length 1 (Yang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import LINEAR, Form, Stored, fused
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

#: By which Baichuan 2 is told, whose config.json is that of Baichuan otherwise.
VOCAB_OF_2 = 125_696
_NORM_FLOOR = 1e-12  # torch's
#: By which llama.cpp tells the 13B models, whose GGUF files do not say that they have ALiBi.
LAYERS_13B = 40


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


def read_gguf(file: GgufFile, fields: Fields) -> BaichuanConfig:
    """Here q, k and v lie apart. Whether the rows of Baichuan 2's head have length 1 already changes nothing."""
    config = BaichuanConfig(**gguf_reading.read_paired(file, fields))
    if config.num_layers == LAYERS_13B:
        raise InputError(
            f"block_count is {LAYERS_13B}, as in Baichuan 13B, whose ALiBi is not implemented; expected Baichuan 7B"
        )
    return config


def _head(x_VxD: np.ndarray, config: ModelConfig) -> np.ndarray:
    if config.vocab_size != VOCAB_OF_2:
        return x_VxD.T
    rows_VxD = x_VxD.astype(np.float32)
    length_Vx1 = np.linalg.norm(rows_VxD, axis=1, keepdims=True)
    return (rows_VxD / np.maximum(length_Vx1, _NORM_FLOOR)).T


_HEAD = Form(LINEAR.shapes, _head, LINEAR.theirs)
NAMES = {
    **llama.NAMES,
    **fused("layer_{l}/attn", "model.layers.{l}.self_attn.W_pack", grouped=False),
    "lm_head/kernel": Stored("lm_head.weight", _HEAD),
}
_GGUF_NAMES = gguf_reading.PAIRED_NAMES | {"lm_head/kernel": Stored(gguf_reading.HEAD, _HEAD)}
FAMILY = Family(
    BaichuanConfig,
    {
        "baichuan": Layout(
            read, NAMES, "model.", classes=("BaiChuanForCausalLM", "BaichuanForCausalLM")
        )
    },
    gguf={"baichuan": Gguf(read_gguf, _GGUF_NAMES)},
)
