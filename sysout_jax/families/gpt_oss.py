"""gpt-oss: experts with biases and a limited gate, a learned sink in every head, a window in every second layer (OpenAI 2025).

Weights that are stored as MXFP4 are refused; a copy in bfloat16 loads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sysout_jax.checks import Flag, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import llama
from sysout_jax.families.family import Export, Family, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import STACKED, Stored, alternating, linear
from sysout_jax.families.mixtral import ExpertsConfig
from sysout_jax.families.reading import read_rotary, read_windows
from sysout_jax.families.writing import layer_windows, norm_fields, rotary_fields
from sysout_jax.models.spec import LayerSpec


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
    plain = read_rotary(fields, eps_default=1e-5, theta=150_000.0, head_dim=64)
    every_second = [l % 2 == 0 for l in range(plain["num_layers"])]
    return GptOssConfig(
        **plain,
        **read_windows(fields, plain["num_layers"], every_second),
        qkv_bias=bias,
        o_bias=bias,
        num_experts=fields.take("num_local_experts", RULES["num_experts"], 128),
        experts_used=fields.take("num_experts_per_tok", RULES["experts_used"], 4),
        gate_limit=fields.take("swiglu_limit", RULES["gate_limit"], 7.0),
    )


def write(config: GptOssConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "gpt_oss", "GptOssForCausalLM"),
        **norm_fields(config, "silu"),
        **layer_windows(config),
        "attention_bias": config.qkv_bias,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_used,
        "swiglu_limit": config.gate_limit,
    }


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
FAMILY = Family(
    GptOssConfig,
    {"gpt_oss": Layout(read, NAMES, "model.", classes=("GptOssForCausalLM",))},
    Export(write, llama.with_their_biases),
)
