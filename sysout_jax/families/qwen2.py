"""Qwen 1.5, 2 and 2.5: LLaMA with biases on q, k and v, and windows in some layers (Yang et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, Whole
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary, read_windows
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import layer_windows, norm_fields, rotary_fields

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """LLaMA's, with biases on q, k and v."""

    family: str = "qwen2"
    qkv_bias: bool = True


def read(fields: Fields) -> Qwen2Config:
    fields.must_be("hidden_act", "silu")
    plain = read_rotary(fields, kv_heads=32)
    return Qwen2Config(**plain, **read_qwen_windows(fields, plain["num_layers"]))


def read_mimo(fields: Fields) -> Qwen2Config:
    """MiMo is Qwen 2 with layers that predict further tokens, which are left out (Xiaomi 2025)."""
    fields.must_be("attention_bias", True)
    fields.take_any("num_nextn_predict_layers")
    return read(fields)


def read_qwen_windows(fields: Fields, num_layers: int) -> dict:
    """Off unless `use_sliding_window`; then in the layers from `max_window_layers` on."""
    used = fields.take("use_sliding_window", Flag(), False)
    first = fields.take("max_window_layers", Whole(0), 28)
    return read_windows(fields, num_layers, [l >= first for l in range(num_layers)], 4096, used)


def read_gguf(file: GgufFile, fields: Fields) -> Qwen2Config:
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    return Qwen2Config(**plain, **gguf_reading.read_biases(file))


def write(config: Qwen2Config) -> dict[str, Any]:
    return {
        **rotary_fields(config, "qwen2", "Qwen2ForCausalLM"),
        **norm_fields(config, "silu"),
        **window_fields(config),
    }


def window_fields(config: RotaryConfig) -> dict[str, Any]:
    return {"use_sliding_window": config.sliding_window is not None, **layer_windows(config)}


def with_their_biases(config: Qwen2Config) -> Qwen2Config:
    return dataclasses.replace(config, qkv_bias=True)


FAMILY = Family(
    Qwen2Config,
    {
        "qwen2": Layout(read, llama.NAMES, "model.", classes=("Qwen2ForCausalLM",)),
        "mimo": Layout(read_mimo, llama.NAMES, "model.", classes=("MiMoForCausalLM",)),
    },
    Export(write, with_their_biases),
    {"qwen2": Gguf(read_gguf, gguf_reading.NAMES)},
)
