"""Qwen 1.5 and 2 with experts, and one more that every token goes through, weighted by a gate (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, Whole
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import linear
from sysout_jax.families.mixtral import ExpertsConfig
from sysout_jax.families.qwen2 import window_fields
from sysout_jax.families.qwen3_moe import EXPERT_NAMES, expert_fields, read_experts
from sysout_jax.families.reading import read_windows
from sysout_jax.families.writing import rotary_fields

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(ExpertsConfig):
    """Mixtral's, with biases on q, k and v; the shared expert counts as several of `d_ff` each."""

    family: str = "qwen2_moe"


def read(fields: Fields) -> Qwen2MoeConfig:
    bias = fields.take("qkv_bias", Flag(), True)
    used = fields.take("use_sliding_window", Flag(), False)
    last = fields.take("max_window_layers", Whole(0), 28)
    plain = read_experts(fields, 60, 4, kv_heads=16)
    shared = _shared_experts(fields, "shared_expert_intermediate_size", plain["d_ff"])
    if not used:
        fields.take_any("sliding_window")  # 0 in some files
    layers = plain["num_layers"]
    windows = read_windows(
        fields, layers, [l % 2 == 0 and l < last for l in range(layers)], 4096, used
    )
    return Qwen2MoeConfig(**plain, **windows, qkv_bias=bias, shared_experts=shared)


def _shared_experts(fields: Fields, name: str, width: int, default: Any = ...) -> int:
    """How many experts of this width the shared one counts as; `name` is that of its own width."""
    shared = fields.take(name, RULES["d_ff"], default)
    if shared % width:
        raise InputError(
            f"{name} is {shared}; expected a multiple of the width of the others, {width}"
        )
    return shared // width


def read_gguf(file: GgufFile, fields: Fields) -> Qwen2MoeConfig:
    """The weights of the chosen experts do not sum to 1 in any published model, which few files say; older files lack both widths."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    experts = gguf_reading.read_experts(fields)
    fields.must_be("expert_weights_norm", False)
    whole = plain.pop("d_ff")
    width = fields.take(
        "expert_feed_forward_length", RULES["d_ff"], whole // experts["experts_used"]
    )
    shared = _shared_experts(fields, "expert_shared_feed_forward_length", width, whole)
    biases = gguf_reading.read_biases(file)
    return Qwen2MoeConfig(
        **plain, **biases, **experts, d_ff=width, shared_experts=shared, normalised=False
    )


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
    gguf={
        "qwen2moe": Gguf(
            read_gguf,
            gguf_reading.with_shared_expert(gguf_reading.with_experts(gguf_reading.NAMES)),
        )
    },
)
