"""OLMo 2: norms after attention and after the MLP, none before them; one norm over all of q, one over all of k (OLMo team 2024)."""

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
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Olmo2Config(LlamaConfig):
    """LLaMA's, with its norms elsewhere."""

    family: str = "olmo2"

    def layer(self, l: int) -> LayerSpec:
        plain, norm = super().layer(l), NormSpec(self.norm_eps)
        return dataclasses.replace(
            plain,
            heads=dataclasses.replace(plain.heads, norm=norm, norm_over="all"),
            attn_norm=None,
            mlp_norm=None,
            attn_post_norm=norm,
            mlp_post_norm=norm,
        )


def read(fields: Fields) -> Olmo2Config:
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", Flag(), False)
    return Olmo2Config(**read_rotary(fields, eps_default=1e-5), qkv_bias=bias, o_bias=bias)


def write(config: Olmo2Config) -> dict[str, Any]:
    return {
        **rotary_fields(config, "olmo2", "Olmo2ForCausalLM"),
        **norm_fields(config, "silu"),
        "attention_bias": config.qkv_bias,
    }


def read_gguf(file: GgufFile, fields: Fields) -> Olmo2Config:
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    return Olmo2Config(**plain, **gguf_reading.read_biases(file))


NAMES = {
    ours: stored
    for ours, stored in llama.NAMES.items()
    if not ours.startswith(("layer_{l}/attn_norm", "layer_{l}/mlp_norm"))
} | {
    "layer_{l}/attn/q_norm/scale": Stored("model.layers.{l}.self_attn.q_norm.weight"),
    "layer_{l}/attn/k_norm/scale": Stored("model.layers.{l}.self_attn.k_norm.weight"),
    "layer_{l}/attn_post_norm/scale": Stored("model.layers.{l}.post_attention_layernorm.weight"),
    "layer_{l}/mlp_post_norm/scale": Stored("model.layers.{l}.post_feedforward_layernorm.weight"),
}
FAMILY = Family(
    Olmo2Config,
    {"olmo2": Layout(read, NAMES, "model.", classes=("Olmo2ForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"olmo2": Gguf(read_gguf, gguf_reading.NAMES)},
)
