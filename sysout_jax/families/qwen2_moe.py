"""Qwen 1.5 and 2 with experts, and one more that every token goes through, weighted by a gate (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sysout_jax.checks import Flag, Whole
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families.family import Export, Family, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import linear
from sysout_jax.families.mixtral import ExpertsConfig
from sysout_jax.families.qwen2 import window_fields
from sysout_jax.families.qwen3_moe import EXPERT_NAMES, expert_fields, read_experts
from sysout_jax.families.reading import read_windows
from sysout_jax.families.writing import rotary_fields


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(ExpertsConfig):
    """Mixtral's, with biases on q, k and v; the shared expert counts as several of `d_ff` each."""

    family: str = "qwen2_moe"


def read(fields: Fields) -> Qwen2MoeConfig:
    bias = fields.take("qkv_bias", Flag(), True)
    used = fields.take("use_sliding_window", Flag(), False)
    last = fields.take("max_window_layers", Whole(0), 28)
    plain = read_experts(fields, 60, 4)
    shared = fields.take("shared_expert_intermediate_size", RULES["d_ff"])
    if shared % plain["d_ff"]:
        raise InputError(
            f"shared_expert_intermediate_size is {shared}; expected a multiple of moe_intermediate_size {plain['d_ff']}"
        )
    if not used:
        fields.take_any("sliding_window")  # 0 in some files
    layers = plain["num_layers"]
    windows = read_windows(fields, layers, [l % 2 == 0 and l < last for l in range(layers)], used)
    return Qwen2MoeConfig(**plain, **windows, qkv_bias=bias, shared_experts=shared // plain["d_ff"])


def write(config: Qwen2MoeConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "qwen2_moe", "Qwen2MoeForCausalLM"),
        **expert_fields(config),
        **window_fields(config),
        "qkv_bias": config.qkv_bias,
        "shared_expert_intermediate_size": config.shared_experts * config.d_ff,
    }


_SHARED = "model.layers.{l}.mlp.shared_expert"
NAMES = {
    ours: dataclasses.replace(stored, shared=f"{_SHARED}.{ours.split('/')[2]}.weight")
    if stored.form.axis is not None
    else stored
    for ours, stored in EXPERT_NAMES.items()
} | {"layer_{l}/mlp/shared_gate": linear(f"{_SHARED}_gate.weight")}
FAMILY = Family(
    Qwen2MoeConfig,
    {"qwen2_moe": Layout(read, NAMES, "model.", classes=("Qwen2MoeForCausalLM",))},
    Export(write),
)
