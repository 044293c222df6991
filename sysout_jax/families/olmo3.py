"""OLMo 3: OLMo 2 with a window in three of four layers, whose rotary positions are not scaled (OLMo team 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.checks import Flag, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama, olmo2
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.olmo2 import Olmo2Config
from sysout_jax.families.reading import read_local_theta, read_rotary, read_windows, windows
from sysout_jax.families.writing import layer_windows

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True, kw_only=True)
class Olmo3Config(Olmo2Config):
    """OLMo 2's, with windows."""

    family: str = "olmo3"


def read(fields: Fields) -> Olmo3Config:
    fields.must_be("hidden_act", "silu")
    bias = fields.take("attention_bias", Flag(), False)
    theta = fields.take("rope_theta", RULES["rope_theta"], 500_000.0)
    local = read_local_theta(fields, None, theta)
    plain = read_rotary(fields, eps_default=1e-5, theta=theta)
    pattern = [(l + 1) % 4 != 0 for l in range(plain["num_layers"])]
    windows = read_windows(fields, plain["num_layers"], pattern, absent=4096)
    return Olmo3Config(**plain, **windows, local_rope_theta=local, qkv_bias=bias, o_bias=bias)


def write(config: Olmo3Config) -> dict[str, Any]:
    plain = olmo2.write(config) | {"model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"]}
    theta, scaling = plain.pop("rope_theta"), plain.pop("rope_scaling")
    # said of all layers at once, transformers takes it for those without a window only
    positions = {
        "full_attention": {"rope_type": "default", "rope_theta": theta, **(scaling or {})},
        "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
    }
    return plain | layer_windows(config) | {"rope_parameters": positions}


def read_gguf(file: GgufFile, fields: Fields) -> Olmo3Config:
    """Files of OLMo 2's architecture with a window; the pattern says which layers have it, three of four where it is missing."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    window = fields.take(_WINDOW, RULES["context_length"])
    layers = plain["num_layers"]
    pattern = fields.take_any(_PATTERN, [(l + 1) % 4 != 0 for l in range(layers)])
    if isinstance(pattern, bool):  # all alike
        pattern = [pattern] * layers
    on = [bool(each) for each in np.ravel(pattern)]
    if len(on) != layers:
        raise InputError(
            f"{_PATTERN} is {shown(pattern)}; expected a yes or no for each of {layers} layers"
        )
    theta = plain["rope_theta"]
    biases = gguf_reading.read_biases(file)
    return Olmo3Config(**plain, **biases, **windows(window, on), local_rope_theta=theta)


FAMILY = Family(
    Olmo3Config,
    {"olmo3": Layout(read, olmo2.NAMES, "model.", classes=("Olmo3ForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={
        "olmo2": Gguf(read_gguf, gguf_reading.NAMES, lambda fields: fields.has(_WINDOW)),
    },
)
