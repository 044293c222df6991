"""Gemma 2: norms before and after attention and MLP, capped logits, a window in every second layer (Gemma team 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checks import Flag, Real
from sysout_jax.config import RULES
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored
from sysout_jax.families.gemma import TANH, GemmaConfig, read_gguf_plain
from sysout_jax.families.reading import read_activation, read_rotary, read_windows, windows
from sysout_jax.families.writing import activation_name, layer_windows, rotary_fields
from sysout_jax.models.spec import EndsSpec, LayerSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

LAYERS_27B = 46


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """Gemma's, with caps on the logits of attention and of the head."""

    family: str = "gemma2"
    attention_scale: float | None = None
    """None: 1/√Dh."""
    softcap: float | None = None
    final_softcap: float | None = None

    def layer(self, l: int) -> LayerSpec:
        attention = AttentionSpec(
            scale=self.attention_scale, softcap=self.softcap, window=self.window(l)
        )
        return dataclasses.replace(
            super().layer(l),
            attention=attention,
            attn_post_norm=self.norm(),
            mlp_post_norm=self.norm(),
        )

    def ends(self) -> EndsSpec:
        return dataclasses.replace(super().ends(), softcap=self.final_softcap)


def read(fields: Fields) -> Gemma2Config:
    fields.must_be("use_bidirectional_attention", False)
    fields.read_aliases({"sliding_window_size": "sliding_window"})
    fields.take_any("hidden_act")  # what counts is the other one
    activation = read_activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    bias = fields.take("attention_bias", Flag(), False)
    plain = read_rotary(fields, tied=True, head_dim=256, kv_heads=4)
    scalar = fields.take("query_pre_attn_scalar", Real(1e-3, 1e6), 256)
    every_second = [l % 2 == 0 for l in range(plain["num_layers"])]
    return Gemma2Config(
        **plain,
        **read_windows(fields, plain["num_layers"], every_second, absent=4096),
        activation=activation,
        qkv_bias=bias,
        o_bias=bias,
        attention_scale=scalar**-0.5,
        softcap=fields.take("attn_logit_softcapping", RULES["softcap"], None, absent=50.0),
        final_softcap=fields.take(
            "final_logit_softcapping", RULES["final_softcap"], None, absent=30.0
        ),
    )


def write(config: Gemma2Config) -> dict[str, Any]:
    act = activation_name(config.activation, TANH)
    plain = write_plain(config, "gemma2", "Gemma2ForCausalLM")
    return plain | {"hidden_act": act, "attn_logit_softcapping": config.softcap}


def write_plain(config: Gemma2Config, kind: str, architecture: str) -> dict[str, Any]:
    """What Gemma 2 and 3 call alike."""
    scalar = (config.attention_scale or 1.0) ** -2
    return {
        **rotary_fields(config, kind, architecture),
        "rms_norm_eps": config.norm_eps,
        "hidden_activation": activation_name(config.activation, TANH),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "final_logit_softcapping": config.final_softcap,
        **layer_windows(config),
    }


def with_their_scale(config: Gemma2Config) -> Gemma2Config:
    scale = config.attention_scale or config.head_dim**-0.5
    return dataclasses.replace(llama.with_their_biases(config), attention_scale=scale)


def read_gguf(file: GgufFile, fields: Fields) -> Gemma2Config:
    """Older files lack caps and window, which are the same in all published models (llama.cpp takes these values too).

    The scale of attention is in no file: 1/√Dh, and with the 46 layers of 27B 1/√(D/H) (llama.cpp; Gemma team 2024).
    """
    plain = read_gguf_plain(file, fields)
    window = fields.take("attention.sliding_window", RULES["context_length"], 4096)
    width = plain["head_dim"]
    if plain["num_layers"] == LAYERS_27B:
        width = plain["d_model"] // plain["num_heads"]
    return Gemma2Config(
        **plain,
        **windows(window, [l % 2 == 0 for l in range(plain["num_layers"])]),
        attention_scale=float(width) ** -0.5,
        softcap=fields.take("attn_logit_softcapping", RULES["softcap"], 50.0),
        final_softcap=fields.take("final_logit_softcapping", RULES["final_softcap"], 30.0),
    )


_L = "model.layers.{l}"
NAMES = llama.NAMES | {
    "layer_{l}/attn_post_norm/scale": Stored(f"{_L}.post_attention_layernorm.weight"),
    "layer_{l}/mlp_norm/scale": Stored(f"{_L}.pre_feedforward_layernorm.weight"),
    "layer_{l}/mlp_post_norm/scale": Stored(f"{_L}.post_feedforward_layernorm.weight"),
}
FAMILY = Family(
    Gemma2Config,
    {"gemma2": Layout(read, NAMES, "model.", classes=("Gemma2ForCausalLM",))},
    Export(write, with_their_scale),
    gguf={"gemma2": Gguf(read_gguf, gguf_reading.GEMMA_NAMES)},
)
