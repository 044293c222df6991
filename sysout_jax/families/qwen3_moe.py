"""Qwen 3 with experts: Qwen 3 with a mixture in place of every MLP (Yang et al. 2025)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama, qwen3
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.mixtral import ExpertsConfig, expert_names
from sysout_jax.families.qwen2 import window_fields
from sysout_jax.families.reading import read_rotary, read_windows
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(ExpertsConfig):
    """Mixtral's; q and k are normalised before they turn."""

    family: str = "qwen3_moe"

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        heads = dataclasses.replace(plain.heads, norm=NormSpec(self.norm_eps))
        return dataclasses.replace(plain, heads=heads)


def read(fields: Fields) -> Qwen3MoeConfig:
    bias = fields.take("attention_bias", Flag(), False)
    used = fields.take("use_sliding_window", Flag(), False)
    plain = read_experts(fields, 128, 8, kv_heads=4)
    if not used:
        fields.take_any("sliding_window")  # 0 in some files
    windows = read_windows(fields, plain["num_layers"], [True] * plain["num_layers"], 4096, used)
    return Qwen3MoeConfig(**plain, **windows, qkv_bias=bias, o_bias=bias)


def read_experts(fields: Fields, count: int, used: int, kv_heads: int) -> dict[str, Any]:
    """What Qwen's mixtures share, with their defaults; the MLP of layers without experts has `intermediate_size`, of which there are none."""
    fields.read_aliases({"num_local_experts": "num_experts"})
    fields.must_be("hidden_act", "silu")
    fields.must_be("decoder_sparse_step", 1)
    dense = fields.take_any("mlp_only_layers", [])
    if dense != []:
        raise InputError(
            f"mlp_only_layers is {shown(dense)}; layers without experts among others are not implemented, expected an empty list"
        )
    plain = read_rotary(fields, kv_heads=kv_heads)
    return plain | {
        "d_ff": fields.take("moe_intermediate_size", RULES["d_ff"]),
        "num_experts": fields.take("num_experts", RULES["num_experts"], count),
        "experts_used": fields.take("num_experts_per_tok", RULES["experts_used"], used),
        "normalised": fields.take("norm_topk_prob", Flag(), False),
    }


def write(config: Qwen3MoeConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
        **expert_fields(config),
        **window_fields(config),
        "attention_bias": config.qkv_bias,
    }


def expert_fields(config: ExpertsConfig) -> dict[str, Any]:
    """What `read_experts` reads."""
    return {
        **norm_fields(config, "silu"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": config.d_ff,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_used,
        "norm_topk_prob": config.normalised,
    }


def read_gguf(file: GgufFile, fields: Fields) -> Qwen3MoeConfig:
    """The weights of the chosen experts sum to 1 in all published models, and no file says so."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    plain["d_ff"] = fields.take("expert_feed_forward_length", RULES["d_ff"])
    biases = gguf_reading.read_biases(file)
    return Qwen3MoeConfig(**plain, **biases, **gguf_reading.read_experts(fields))


_PARTS = {part: f"{part}_proj" for part in ("gate", "up", "down")}
EXPERT_NAMES = expert_names("mlp.gate", "mlp.experts", _PARTS)
_NORMS = {ours: stored for ours, stored in qwen3.NAMES.items() if ours.endswith("_norm/scale")}
FAMILY = Family(
    Qwen3MoeConfig,
    {"qwen3_moe": Layout(read, EXPERT_NAMES | _NORMS, "model.", classes=("Qwen3MoeForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"qwen3moe": Gguf(read_gguf, gguf_reading.with_experts(gguf_reading.NAMES))},
)
