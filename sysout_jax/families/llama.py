"""LLaMA 1 to 3.x and its descendants, Mistral with its sliding window: RMSNorm, rotary positions, grouped queries, SwiGLU.

Touvron et al. 2023, Dubey et al. 2024, Jiang et al. 2023.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checks import Flag
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, linear
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


Config = TypeVar("Config", bound="LlamaConfig")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(RotaryConfig):
    """LLaMA and its descendants: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    family: str = "llama"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """An RMSNorm with a trained gain on q and k, head by head, before they turn; ours alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk_norm and type(self) is not LlamaConfig:
            raise InputError(
                f"qk_norm is true; expected false, family {self.family} has the norms that it has; choose gpt2 or llama"
            )

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps)
        return LayerSpec(
            heads=HeadsSpec(
                self.num_heads,
                self.num_kv_heads,
                self.head_dim,
                self.qkv_bias,
                self.o_bias,
                norm=norm if self.qk_norm else None,
            ),
            mlp=MlpSpec(self.d_ff, True, "silu", self.mlp_bias, self.mlp_bias),
            attn_norm=norm,
            mlp_norm=norm,
            attention=AttentionSpec(window=self.window(l)),
            rotary=self.rotary(l),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps))


def read(fields: Fields, **defaults: Any) -> LlamaConfig:
    """`defaults` of `read_rotary`."""
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", Flag(), False)
    mlp_bias = fields.take("mlp_bias", Flag(), False)
    plain = read_rotary(fields, **defaults)
    return LlamaConfig(**plain, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


#: Of files that say nothing of them: those of the published models, as in transformers.
_MINISTRAL_POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read_mistral(fields: Fields) -> LlamaConfig:
    window = fields.take("sliding_window", RULES["sliding_window"], None, absent=4096)
    return dataclasses.replace(read(fields, kv_heads=8), sliding_window=window)


def read_gguf(file: GgufFile, fields: Fields) -> LlamaConfig:
    """Mistral's window is not in its files; they are LLaMA's without."""
    plain = gguf_reading.read_paired(file, fields)
    return LlamaConfig(**plain, **gguf_reading.read_biases(file))


def read_ministral3(fields: Fields) -> LlamaConfig:
    window = fields.take("sliding_window", RULES["sliding_window"], None)
    if fields.peek("rope_scaling") is None:
        fields.fill("rope_parameters", _MINISTRAL_POSITIONS)
    head_dim = fields.take("head_dim", RULES["head_dim"], None, absent=128)
    plain = read(fields, eps_default=1e-5, kv_heads=8, head_dim=head_dim)
    return dataclasses.replace(plain, sliding_window=window)


def read_internlm(fields: Fields) -> LlamaConfig:
    """InternLM 1 has one setting for the biases of attention."""
    bias = fields.take("bias", Flag(), True)
    return dataclasses.replace(read(fields), qkv_bias=bias, o_bias=bias)


def write(config: LlamaConfig) -> dict[str, Any]:
    own = norm_fields(config, "silu")
    if config.sliding_window is None:
        own |= {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
        return rotary_fields(config, "llama", "LlamaForCausalLM") | own
    own |= {"sliding_window": config.sliding_window}
    return rotary_fields(config, "mistral", "MistralForCausalLM") | own


def with_their_biases(config: Config) -> Config:
    """Biases on all of q, k, v and o where one of them has some."""
    bias = config.qkv_bias or config.o_bias
    return dataclasses.replace(config, qkv_bias=bias, o_bias=bias)


NAMES: dict[str, Stored] = {
    "embed/embedding": Stored("model.embed_tokens.weight"),
    "layer_{l}/attn_norm/scale": Stored("model.layers.{l}.input_layernorm.weight"),
    "layer_{l}/attn/q_proj/kernel": linear("model.layers.{l}.self_attn.q_proj.weight"),
    "layer_{l}/attn/q_proj/bias": Stored("model.layers.{l}.self_attn.q_proj.bias"),
    "layer_{l}/attn/k_proj/kernel": linear("model.layers.{l}.self_attn.k_proj.weight"),
    "layer_{l}/attn/k_proj/bias": Stored("model.layers.{l}.self_attn.k_proj.bias"),
    "layer_{l}/attn/v_proj/kernel": linear("model.layers.{l}.self_attn.v_proj.weight"),
    "layer_{l}/attn/v_proj/bias": Stored("model.layers.{l}.self_attn.v_proj.bias"),
    "layer_{l}/attn/o_proj/kernel": linear("model.layers.{l}.self_attn.o_proj.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("model.layers.{l}.self_attn.o_proj.bias"),
    "layer_{l}/mlp_norm/scale": Stored("model.layers.{l}.post_attention_layernorm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": linear("model.layers.{l}.mlp.gate_proj.weight"),
    "layer_{l}/mlp/gate_proj/bias": Stored("model.layers.{l}.mlp.gate_proj.bias"),
    "layer_{l}/mlp/up_proj/kernel": linear("model.layers.{l}.mlp.up_proj.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("model.layers.{l}.mlp.up_proj.bias"),
    "layer_{l}/mlp/down_proj/kernel": linear("model.layers.{l}.mlp.down_proj.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("model.layers.{l}.mlp.down_proj.bias"),
    "final_norm/scale": Stored("model.norm.weight"),
    "lm_head/kernel": linear("lm_head.weight"),
}

_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
FAMILY = Family(
    LlamaConfig,
    {
        "llama": Layout(
            read,
            NAMES,
            "model.",
            classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
            defaults=_SIZES | {"intermediate_size": 11008, "max_position_embeddings": 2048},
        ),
        "mistral": Layout(
            read_mistral,
            NAMES,
            "model.",
            classes=("MistralForCausalLM",),
            defaults=_SIZES
            | {
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
                "sliding_window": 4096,
            },
        ),
        "internlm": Layout(read_internlm, NAMES, "model.", classes=("InternLMForCausalLM",)),
        "ministral3": Layout(
            read_ministral3, NAMES, "model.", classes=("Ministral3ForCausalLM",), defaults=_SIZES
        ),
    },
    Export(write, with_their_biases),
    {"llama": Gguf(read_gguf, gguf_reading.PAIRED_NAMES)},
)
