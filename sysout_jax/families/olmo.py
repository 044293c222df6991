"""OLMo: norms without scale or bias, queries, keys and values cut to a range (Groeneveld et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.config import RULES
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import rotary_fields
from sysout_jax.models.spec import EndsSpec, LayerSpec, NormSpec

EPS = 1e-5

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class OlmoConfig(LlamaConfig):
    """LLaMA's, with other norms."""

    family: str = "olmo"
    clip_qkv: float | None = None

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        heads = dataclasses.replace(plain.heads, clip=self.clip_qkv)
        norm = NormSpec(self.norm_eps, centred=True, scale=False)
        return dataclasses.replace(plain, heads=heads, attn_norm=norm, mlp_norm=norm)

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, scale=False))


def read(fields: Fields) -> OlmoConfig:
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", Flag(), False)
    clip = fields.take("clip_qkv", RULES["clip_qkv"], None)
    return OlmoConfig(**read_rotary(fields, EPS), clip_qkv=clip, qkv_bias=bias, o_bias=bias)


def write(config: OlmoConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "olmo", "OlmoForCausalLM"),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "clip_qkv": config.clip_qkv,
    }


def read_gguf(file: GgufFile, fields: Fields) -> OlmoConfig:
    clip = fields.take("attention.clamp_kqv", RULES["clip_qkv"], None)
    return OlmoConfig(**gguf_reading.read_rotary(file, fields, gguf_reading.EPS), clip_qkv=clip)


FAMILY = Family(
    OlmoConfig,
    {"olmo": Layout(read, llama.NAMES, "model.", classes=("OlmoForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"olmo": Gguf(read_gguf, gguf_reading.PAIRED_NAMES)},
)
