"""InternLM 2 in its own layout: LLaMA with q, k and v in one matrix, by key heads (Cai et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, fused, linear
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class InternLM2Config(LlamaConfig):
    """LLaMA's."""

    family: str = "internlm2"


def read(fields: Fields) -> InternLM2Config:
    fields.must_be("hidden_act", "silu")
    fields.must_be("bias", False)
    return InternLM2Config(**read_rotary(fields))


def read_gguf(file: GgufFile, fields: Fields) -> InternLM2Config:
    """Here q, k and v lie apart."""
    return InternLM2Config(**gguf_reading.read_paired(file, fields))


_L = "model.layers.{l}"
NAMES = {
    **llama.NAMES,
    "embed/embedding": Stored("model.tok_embeddings.weight"),
    "layer_{l}/attn_norm/scale": Stored(f"{_L}.attention_norm.weight"),
    **fused("layer_{l}/attn", f"{_L}.attention.wqkv", grouped=True),
    "layer_{l}/attn/o_proj/kernel": linear(f"{_L}.attention.wo.weight"),
    "layer_{l}/mlp_norm/scale": Stored(f"{_L}.ffn_norm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": linear(f"{_L}.feed_forward.w1.weight"),
    "layer_{l}/mlp/up_proj/kernel": linear(f"{_L}.feed_forward.w3.weight"),
    "layer_{l}/mlp/down_proj/kernel": linear(f"{_L}.feed_forward.w2.weight"),
    "lm_head/kernel": linear("output.weight"),
}
FAMILY = Family(
    InternLM2Config,
    {"internlm2": Layout(read, NAMES, "model.", classes=("InternLM2ForCausalLM",))},
    gguf={"internlm2": Gguf(read_gguf, gguf_reading.PAIRED_NAMES)},
)
