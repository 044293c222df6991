"""Qwen 1.5, 2 and 2.5: LLaMA with biases on q, k and v, and windows in some layers (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from sysout_jax.checks import Flag, Whole
from sysout_jax.convert.fields import Fields
from sysout_jax.families import llama
from sysout_jax.families.family import Family, Layout
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary, read_windows


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """LLaMA's, with biases on q, k and v."""

    family: str = "qwen2"
    qkv_bias: bool = True


def read(fields: Fields) -> Qwen2Config:
    fields.must_be("hidden_act", "silu")
    plain = read_rotary(fields)
    return Qwen2Config(**plain, **read_qwen_windows(fields, plain["num_layers"]))


def read_qwen_windows(fields: Fields, num_layers: int) -> dict:
    """Off unless `use_sliding_window`; then in the layers from `max_window_layers` on."""
    used = fields.take("use_sliding_window", Flag(), False)
    first = fields.take("max_window_layers", Whole(0), 28)
    return read_windows(fields, num_layers, [l >= first for l in range(num_layers)], used)


FAMILY = Family(
    Qwen2Config, {"qwen2": Layout(read, llama.NAMES, "model.", classes=("Qwen2ForCausalLM",))}
)
