"""Mixtral: Mistral with a mixture of experts in place of every MLP (Jiang et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import INTO_EXPERTS, OUT_OF_EXPERTS, Stored, linear
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields
from sysout_jax.models.spec import ExpertsSpec, LayerSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(LlamaConfig):
    """LLaMA's with experts; `d_ff` is the width of one of them."""

    num_experts: int
    experts_used: int
    """For every token."""
    normalised: bool = True
    """The weights of the chosen experts sum to 1."""
    shared_experts: int = 0
    """So many more that every token goes through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts_used > self.num_experts:
            raise InputError(
                f"experts_used {self.experts_used} must be at most num_experts {self.num_experts}"
            )

    def layer(self, l: int) -> LayerSpec:
        plain = super().layer(l)
        experts = ExpertsSpec(
            self.num_experts, self.experts_used, self.normalised, shared=self.shared_experts
        )
        return dataclasses.replace(plain, mlp=dataclasses.replace(plain.mlp, experts=experts))


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(ExpertsConfig):
    """The router's weights of the chosen experts sum to 1."""

    family: str = "mixtral"


def read(fields: Fields) -> MixtralConfig:
    fields.must_be("hidden_act", "silu")
    window = fields.take("sliding_window", RULES["sliding_window"], None)
    return MixtralConfig(
        **read_rotary(fields, eps_default=1e-5, theta=1e6, kv_heads=8),
        sliding_window=window,
        num_experts=fields.take("num_local_experts", RULES["num_experts"], 8),
        experts_used=fields.take("num_experts_per_tok", RULES["experts_used"], 2),
    )


def write(config: MixtralConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "mixtral", "MixtralForCausalLM"),
        **norm_fields(config, "silu"),
        "sliding_window": config.sliding_window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_used,
    }


def read_gguf(file: GgufFile, fields: Fields) -> MixtralConfig:
    """Files of LLaMA's architecture; none says that there is a window."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS)
    return MixtralConfig(**plain, **gguf_reading.read_experts(fields))


def expert_names(router: str, experts: str, parts: dict[str, str]) -> dict[str, Stored]:
    """LLaMA's with a router and experts below those names in place of the MLP; `parts` are our gate, up, down ← theirs."""
    names = {k: v for k, v in llama.NAMES.items() if not k.startswith("layer_{l}/mlp/")}
    for ours, theirs in parts.items():
        form = OUT_OF_EXPERTS if ours == "down" else INTO_EXPERTS
        name = f"model.layers.{{l}}.{experts}.{{e}}.{theirs}.weight"
        names[f"layer_{{l}}/mlp/{ours}_proj/kernel"] = Stored(name, form)
    return names | {"layer_{l}/mlp/router": linear(f"model.layers.{{l}}.{router}.weight")}


NAMES = expert_names(
    "block_sparse_moe.gate",
    "block_sparse_moe.experts",
    {"gate": "w1", "up": "w3", "down": "w2"},
)
FAMILY = Family(
    MixtralConfig,
    {"mixtral": Layout(read, NAMES, "model.", classes=("MixtralForCausalLM",))},
    Export(write),
    gguf={
        "llama": Gguf(
            read_gguf,
            gguf_reading.with_experts(gguf_reading.PAIRED_NAMES),
            gguf_reading.has_experts,
        )
    },
)
