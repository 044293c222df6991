"""Cohere (Command R, Aya 23): attention and MLP side by side after one norm, scaled logits. Normalised queries and keys are refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.config import RULES
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import PAIRED, PAIRED_LINEAR
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import EndsSpec, LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class CohereConfig(LlamaConfig):
    """LLaMA's, with LayerNorms that have no biases."""

    family: str = "cohere"
    tied_embeddings: bool = True
    head_scale: float | None = None

    def norm(self) -> NormSpec:
        return NormSpec(self.norm_eps, centred=True)

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        return dataclasses.replace(plain, attn_norm=self.norm(), mlp_norm=None, parallel=True)

    def ends(self) -> EndsSpec:
        return EndsSpec(self.norm(), head_scale=self.head_scale)


def read(fields: Fields) -> CohereConfig:
    fields.must_be("hidden_act", "silu")
    fields.must_be("use_qk_norm", False)
    bias = fields.take("attention_bias", Flag(), False)
    return CohereConfig(
        **read_rotary(fields, "layer_norm_eps", eps_default=1e-5, tied=True, theta=500_000.0),
        qkv_bias=bias,
        o_bias=bias,
        head_scale=fields.take("logit_scale", RULES["head_scale"], 0.0625),
    )


def write(config: CohereConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "cohere", "CohereForCausalLM"),
        **norm_fields(config, "silu", "layer_norm_eps"),
        "use_qk_norm": False,
        "attention_bias": config.qkv_bias,
        "logit_scale": config.head_scale,
    }


def with_their_scale(config: CohereConfig) -> CohereConfig:
    whole = llama.with_their_biases(config)
    return dataclasses.replace(whole, head_scale=config.head_scale or 1.0)


def read_gguf(file: GgufFile, fields: Fields) -> CohereConfig:
    """q and k lie in neighbouring pairs here too: the converter of this architecture leaves every tensor as it is."""
    return CohereConfig(
        **gguf_reading.read_rotary(file, fields, gguf_reading.EPS),
        **gguf_reading.read_biases(file),
        head_scale=fields.take("logit_scale", RULES["head_scale"], None),
    )


#: Its rotary positions turn neighbouring pairs.
_PAIRED = {
    f"layer_{{l}}/attn/{part}_proj/{kind}": dataclasses.replace(
        llama.NAMES[f"layer_{{l}}/attn/{part}_proj/{kind}"], form=form
    )
    for part in "qk"
    for kind, form in (("kernel", PAIRED_LINEAR), ("bias", PAIRED))
}
NAMES = llama.NAMES | _PAIRED
FAMILY = Family(
    CohereConfig,
    {"cohere": Layout(read, NAMES, "model.", classes=("CohereForCausalLM",))},
    Export(write, with_their_scale),
    gguf={"command-r": Gguf(read_gguf, gguf_reading.PAIRED_NAMES)},
)
