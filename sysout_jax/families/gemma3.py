"""Gemma 3, its text model: Gemma 2 with normalised queries and keys and a base of rotary positions for layers with a window (Gemma team 2025)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, Real, Whole
from sysout_jax.config import RULES
from sysout_jax.families import gemma2, gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored
from sysout_jax.families.gemma2 import Gemma2Config
from sysout_jax.families.reading import (
    read_activation,
    read_local_theta,
    read_rotary,
    read_windows,
    windows,
)
from sysout_jax.models.spec import LayerSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

LAYERS_27B = 62


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """Gemma 2's; q and k are normalised head by head before they turn."""

    family: str = "gemma3"

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        heads = dataclasses.replace(plain.heads, norm=self.norm())
        return dataclasses.replace(plain, heads=heads)


def read(fields: Fields) -> Gemma3Config:
    fields.must_be("use_bidirectional_attention", False)
    activation = read_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    bias = fields.take("attention_bias", Flag(), False)
    if fields.has("layer_types"):
        fields.take_any("_sliding_window_pattern")  # which transformers writes beside them
    local = read_local_theta(fields, "rope_local_base_freq", 10_000.0)
    plain = read_rotary(fields, tied=True, theta=1e6, head_dim=256, kv_heads=4)
    scalar = fields.take("query_pre_attn_scalar", Real(1e-3, 1e6), 256)
    every = fields.take("sliding_window_pattern", Whole(), 6)
    pattern = [(l + 1) % every != 0 for l in range(plain["num_layers"])]
    return Gemma3Config(
        **plain,
        **read_windows(fields, plain["num_layers"], pattern, absent=4096),
        local_rope_theta=local,
        activation=activation,
        qkv_bias=bias,
        o_bias=bias,
        attention_scale=scalar**-0.5,
        final_softcap=fields.take("final_logit_softcapping", RULES["final_softcap"], None),
    )


def write(config: Gemma3Config) -> dict[str, Any]:
    plain = gemma2.write_plain(config, "gemma3_text", "Gemma3ForCausalLM")
    return plain | {"rope_local_base_freq": config.local_rope_theta}


def read_gguf(file: GgufFile, fields: Fields) -> Gemma3Config:
    """Five layers with a window, then one without; those with one turn by 10,000 where no key says otherwise.

    The scale of attention is in no file: 1/√Dh, and with the 62 layers of 27B 1/√(D/H) (llama.cpp; Gemma team 2025).
    """
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS, theta=1e6)
    layers = plain["num_layers"]
    width = plain["d_model"] // plain["num_heads"] if layers == LAYERS_27B else plain["head_dim"]
    window = fields.take("attention.sliding_window", RULES["sliding_window"], None)
    return Gemma3Config(
        **plain,
        **windows(window, [(l + 1) % 6 != 0 for l in range(layers)]),
        local_rope_theta=fields.take("rope.freq_base_swa", RULES["rope_theta"], 10_000.0),
        attention_scale=float(width) ** -0.5,
        final_softcap=fields.take("final_logit_softcapping", RULES["final_softcap"], None),
    )


NAMES = gemma2.NAMES | {
    "layer_{l}/attn/q_norm/scale": Stored("model.layers.{l}.self_attn.q_norm.weight"),
    "layer_{l}/attn/k_norm/scale": Stored("model.layers.{l}.self_attn.k_norm.weight"),
}
#: What a text_config leaves out.
_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
FAMILY = Family(
    Gemma3Config,
    {
        "gemma3_text": Layout(
            read, NAMES, "model.", classes=("Gemma3ForCausalLM",), defaults=_DEFAULTS
        )
    },
    Export(write, gemma2.with_their_scale),
    {"gemma3": Gguf(read_gguf, gguf_reading.GEMMA_NAMES)},
)
