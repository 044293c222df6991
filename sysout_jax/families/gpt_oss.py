"""gpt-oss: experts with biases and a limited gate, a learned sink in every head, a window in every second layer (OpenAI 2025).

Hugging Face's directories in MXFP4 are refused; a copy in bfloat16 loads, and GGUF files in MXFP4 do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import STACKED, STACKED_BIASES, Stored, alternating, linear
from sysout_jax.families.mixtral import ExpertsConfig
from sysout_jax.families.reading import read_rotary, read_windows, windows
from sysout_jax.families.writing import layer_windows, norm_fields, rotary_fields
from sysout_jax.models.spec import LayerSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


#: Of files that say nothing of them: those of the published models, as in transformers.
_POSITIONS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(ExpertsConfig):
    """Mixtral's, with sinks; x_down = quick_gelu(min(gate, limit)) · (up within ± limit, + 1)."""

    family: str = "gpt_oss"
    qkv_bias: bool = True
    o_bias: bool = True
    gate_limit: float | None = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention != "default" and not self.extra_keys:
            raise InputError(
                f"attention is {shown(self.attention)}; expected default, gpt-oss has learned sinks of its own"
            )

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        assert plain.mlp.experts is not None
        mlp = dataclasses.replace(
            plain.mlp,
            activation="quick_gelu",
            up_bias=True,
            down_bias=True,
            limit=self.gate_limit,
            up_offset=1.0,
            experts=dataclasses.replace(plain.mlp.experts, router_bias=True),
        )
        heads = dataclasses.replace(plain.heads, sink=True)
        return dataclasses.replace(plain, mlp=mlp, heads=heads)


def read(fields: Fields) -> GptOssConfig:
    fields.read_aliases({"experts_per_token": "num_experts_per_tok"})
    fields.must_be("hidden_act", "silu")  # so it says
    fields.must_be("swiglu_alpha", 1.702)
    fields.take_any("initial_context_length")  # what the scaling of positions says, too
    bias = fields.take("attention_bias", Flag(), True)
    if fields.peek("rope_scaling") is None:
        fields.fill("rope_parameters", _POSITIONS)
    plain = read_rotary(fields, eps_default=1e-5, theta=150_000.0, head_dim=64, kv_heads=8)
    every_second = [l % 2 == 0 for l in range(plain["num_layers"])]
    return GptOssConfig(
        **plain,
        **read_windows(fields, plain["num_layers"], every_second, absent=128),
        qkv_bias=bias,
        o_bias=bias,
        num_experts=fields.take("num_local_experts", RULES["num_experts"], 128),
        experts_used=fields.take("num_experts_per_tok", RULES["experts_used"], 4),
        gate_limit=fields.take("swiglu_limit", RULES["gate_limit"], 7.0),
    )


def write(config: GptOssConfig) -> dict[str, Any]:
    fields = rotary_fields(config, "gpt_oss", "GptOssForCausalLM")
    if fields["rope_scaling"] is None:  # null stands for that of the published models
        fields["rope_scaling"] = {"rope_type": "default"}
    return {
        **fields,
        **norm_fields(config, "silu"),
        **layer_windows(config),
        "attention_bias": config.qkv_bias,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_used,
        "swiglu_limit": config.gate_limit,
    }


def read_gguf(file: GgufFile, fields: Fields) -> GptOssConfig:
    """The limit of the gate, and that YaRN blends from no whole pair on, are those of the published models; every second layer has the window."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS, theta=150_000.0)
    plain["d_ff"] = fields.take("expert_feed_forward_length", RULES["d_ff"])
    if plain["rope_scaling"] is not None:
        plain["rope_scaling"] = dataclasses.replace(plain["rope_scaling"], truncate=False)
    window = fields.take("attention.sliding_window", RULES["context_length"])
    return GptOssConfig(
        **plain,
        **windows(window, [l % 2 == 0 for l in range(plain["num_layers"])]),
        **gguf_reading.read_biases(file),
        **gguf_reading.read_experts(fields),
    )


_M = "model.layers.{l}.mlp"
NAMES = {k: v for k, v in llama.NAMES.items() if not k.startswith("layer_{l}/mlp/")} | {
    "layer_{l}/attn/sink": Stored("model.layers.{l}.self_attn.sinks"),
    "layer_{l}/mlp/router": linear(f"{_M}.router.weight"),
    "layer_{l}/mlp/router_bias": Stored(f"{_M}.router.bias"),
    "layer_{l}/mlp/gate_proj/kernel": Stored(f"{_M}.experts.gate_up_proj", alternating(0)),
    "layer_{l}/mlp/gate_proj/bias": Stored(f"{_M}.experts.gate_up_proj_bias", alternating(0)),
    "layer_{l}/mlp/up_proj/kernel": Stored(f"{_M}.experts.gate_up_proj", alternating(1)),
    "layer_{l}/mlp/up_proj/bias": Stored(f"{_M}.experts.gate_up_proj_bias", alternating(1)),
    "layer_{l}/mlp/down_proj/kernel": Stored(f"{_M}.experts.down_proj", STACKED),
    "layer_{l}/mlp/down_proj/bias": Stored(f"{_M}.experts.down_proj_bias"),
}
_STACKED_BIASES = {
    f"layer_{{l}}/mlp/{part}_proj/bias": Stored(f"blk.{{l}}.ffn_{part}_exps.bias", STACKED_BIASES)
    for part in ("gate", "up")
}
GGUF_NAMES = (
    gguf_reading.with_experts(gguf_reading.NAMES)
    | _STACKED_BIASES
    | {
        "layer_{l}/attn/sink": Stored("blk.{l}.attn_sinks.weight"),
        "layer_{l}/mlp_norm/scale": Stored("blk.{l}.post_attention_norm.weight"),
        "layer_{l}/mlp/router_bias": Stored("blk.{l}.ffn_gate_inp.bias"),
        "layer_{l}/mlp/down_proj/bias": Stored("blk.{l}.ffn_down_exps.bias"),
    }
)
FAMILY = Family(
    GptOssConfig,
    {"gpt_oss": Layout(read, NAMES, "model.", classes=("GptOssForCausalLM",))},
    Export(write, llama.with_their_biases),
    gguf={"gpt-oss": Gguf(read_gguf, GGUF_NAMES)},
)
