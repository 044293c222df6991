"""Qwen 3: LLaMA whose queries and keys are normalised head by head (Yang et al. 2025)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.qwen2 import read_qwen_windows, window_fields
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """LLaMA's; q and k are normalised before they turn."""

    family: str = "qwen3"

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        heads = dataclasses.replace(plain.heads, norm=NormSpec(self.norm_eps))
        return dataclasses.replace(plain, heads=heads)


def read(fields: Fields) -> Qwen3Config:
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", Flag(), False)
    plain = read_rotary(fields, head_dim=128, kv_heads=32)
    windows = read_qwen_windows(fields, plain["num_layers"])
    return Qwen3Config(**plain, **windows, qkv_bias=bias, o_bias=bias)


def write(config: Qwen3Config) -> dict[str, Any]:
    return {
        **rotary_fields(config, "qwen3", "Qwen3ForCausalLM"),
        **norm_fields(config, "silu"),
        **window_fields(config),
        "attention_bias": config.qkv_bias,
    }


def read_gguf(file: GgufFile, fields: Fields) -> Qwen3Config:
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    return Qwen3Config(**plain, **gguf_reading.read_biases(file))


NAMES = llama.NAMES | {
    "layer_{l}/attn/q_norm/scale": Stored("model.layers.{l}.self_attn.q_norm.weight"),
    "layer_{l}/attn/k_norm/scale": Stored("model.layers.{l}.self_attn.k_norm.weight"),
}
FAMILY = Family(
    Qwen3Config,
    {"qwen3": Layout(read, NAMES, "model.", classes=("Qwen3ForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"qwen3": Gguf(read_gguf, gguf_reading.NAMES)},
)
