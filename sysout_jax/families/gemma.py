"""Gemma: LLaMA with embeddings times √D, norms whose stored scale lacks 1, GELU in the gate (Gemma team 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.config import ActivationName
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_activation, read_rotary
from sysout_jax.families.writing import activation_name, norm_fields, rotary_fields
from sysout_jax.models.spec import EndsSpec, LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """LLaMA's, with other norms and another gate."""

    family: str = "gemma"
    tied_embeddings: bool = True
    activation: ActivationName = "gelu_tanh"

    def norm(self) -> NormSpec:
        return NormSpec(self.norm_eps, offset=1.0)

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        mlp = dataclasses.replace(plain.mlp, activation=self.activation)
        return dataclasses.replace(plain, mlp=mlp, attn_norm=self.norm(), mlp_norm=self.norm())

    def ends(self) -> EndsSpec:
        return EndsSpec(self.norm(), embed_scale=self.d_model**0.5)


def read(fields: Fields) -> GemmaConfig:
    fields.must_be("use_bidirectional_attention", False)
    named = fields.take_any("hidden_activation")
    activation = read_activation(fields, "hidden_act", named or "gelu_pytorch_tanh")
    bias = fields.take("attention_bias", Flag(), False)
    plain = read_rotary(fields, tied=True, head_dim=256, kv_heads=16)
    return GemmaConfig(**plain, activation=activation, qkv_bias=bias, o_bias=bias)


def write(config: GemmaConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "gemma", "GemmaForCausalLM"),
        **norm_fields(config, activation_name(config.activation, TANH)),
        "attention_bias": config.qkv_bias,
    }


def read_gguf(file: GgufFile, fields: Fields) -> GemmaConfig:
    return GemmaConfig(**read_gguf_plain(file, fields))


def read_gguf_plain(file: GgufFile, fields: Fields) -> dict[str, Any]:
    """What Gemma's files have in common: no head of their own, which the converter drops."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    return plain | {"tied_embeddings": True}


FAMILY = Family(
    GemmaConfig,
    {"gemma": Layout(read, llama.NAMES, "model.", classes=("GemmaForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"gemma": Gguf(read_gguf, gguf_reading.GEMMA_NAMES)},
)
