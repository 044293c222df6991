"""LLaMA 1 to 3.x and its descendants, Mistral with its sliding window: RMSNorm, rotary positions, grouped queries, SwiGLU.

Touvron et al. 2023, Dubey et al. 2024, Jiang et al. 2023.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checks import shown
from sysout_jax.config import RULES, ModelConfig, RopeScaling
from sysout_jax.convert.fields import Fields
from sysout_jax.convert.forms import Stored, linear
from sysout_jax.errors import InputError
from sysout_jax.families.family import Export, Family, Layout
from sysout_jax.families.reading import read_rope
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec, Rotary


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """LLaMA and its descendants: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    family: str = "llama"
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    """Keys that a query sees, itself included (Mistral); None: all before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise InputError(
                f"config field rope_scaling is {shown(self.rope_scaling)}; expected a RopeScaling, or none"
            )
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} must be even, rotary positions turn pairs")
        if self.num_heads * self.head_dim >= 2**31:
            raise InputError(
                f"num_heads {self.num_heads} times head_dim {self.head_dim} must be below 2^31"
            )

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps)
        return LayerSpec(
            heads=HeadsSpec(
                self.num_heads, self.num_kv_heads, self.head_dim, self.qkv_bias, self.o_bias
            ),
            mlp=MlpSpec(self.d_ff, True, "silu", self.mlp_bias, self.mlp_bias),
            attn_norm=norm,
            mlp_norm=norm,
            attention=AttentionSpec(window=self.sliding_window),
            rotary=Rotary(self.head_dim, self.rope_theta, self.rope_scaling),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps))


#: Our fields ← theirs, where only the name differs; export writes by the same table.
FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "mlp_bias": "mlp_bias",
}


def read(fields: Fields) -> LlamaConfig:
    return LlamaConfig(**read_fields(fields))


def read_fields(fields: Fields) -> dict[str, Any]:
    """Our fields from LLaMA's and Mistral's config.json."""
    fields.read_aliases({"max_sequence_length": "max_position_embeddings"})
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", RULES["qkv_bias"], False)
    plain = fields.take_table(
        FIELDS,
        num_kv_heads=None,
        head_dim=None,
        norm_eps=1e-6,
        tied_embeddings=False,
        mlp_bias=False,
    )
    heads, context = plain["num_heads"], plain["context_length"]
    if plain["num_kv_heads"] is None:
        plain["num_kv_heads"] = heads
    if plain["head_dim"] is None:
        plain["head_dim"] = plain["d_model"] // heads
    theta, scaling = read_rope(fields, context)
    return plain | {"rope_theta": theta, "rope_scaling": scaling, "qkv_bias": bias, "o_bias": bias}


def read_mistral(fields: Fields) -> LlamaConfig:
    # without the key, transformers takes 4096; with null, there is no window
    given = fields.has("sliding_window")
    window = fields.take("sliding_window", RULES["sliding_window"], None if given else 4096)
    return LlamaConfig(**read_fields(fields), sliding_window=window)


def write(config: LlamaConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }
    if config.sliding_window is None:
        return fields
    if config.qkv_bias or config.mlp_bias:
        raise InputError(
            "a sliding window beside biases has no class in transformers; use --format orbax"
        )
    del fields["attention_bias"], fields["mlp_bias"]
    window = {"model_type": "mistral", "sliding_window": config.sliding_window}
    return fields | window | {"architectures": ["MistralForCausalLM"]}


def _rope_scaling(config: LlamaConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "factors":
        raise InputError(
            "a rotary divisor for every pair has no name in transformers; use --format orbax"
        )
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return fields


def with_their_biases(config: LlamaConfig) -> LlamaConfig:
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
    },
    Export(write, with_their_biases),
)
