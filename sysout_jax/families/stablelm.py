"""StableLM: LLaMA with LayerNorm and heads that turn in part, side by side in some models (Bellagente et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import layer_norm
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields, turning
from sysout_jax.models.spec import EndsSpec, LayerSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class StableLmConfig(LlamaConfig):
    """LLaMA's; `parallel`: attention and MLP read one norm."""

    family: str = "stablelm"
    parallel: bool = False

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=True)
        second = None if self.parallel else norm
        plain = super().layer(l)
        return dataclasses.replace(plain, attn_norm=norm, mlp_norm=second, parallel=self.parallel)

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True))


def read(fields: Fields) -> StableLmConfig:
    fields.must_be("hidden_act", "silu")
    fields.must_be("qk_layernorm", False)
    return StableLmConfig(
        **read_rotary(fields, "layer_norm_eps", eps_default=1e-5, fraction=0.25, kv_heads=32),
        qkv_bias=fields.take("use_qkv_bias", Flag(), False),
        parallel=fields.take("use_parallel_residual", Flag(), False),
    )


def write(config: StableLmConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "stablelm", "StableLmForCausalLM"),
        **norm_fields(config, "silu", "layer_norm_eps"),
        **turning(config),
        "use_qkv_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel,
    }


def read_gguf(file: GgufFile, fields: Fields) -> StableLmConfig:
    """Without a norm before the MLP attention and MLP are side by side, as llama.cpp has it; the key that says so is often wrong."""
    fields.take_any("use_parallel_residual")
    return StableLmConfig(
        **gguf_reading.read_rotary(file, fields, gguf_reading.EPS, partial=True),
        **gguf_reading.read_biases(file),
        parallel="blk.0.ffn_norm.weight" not in file.tensors,
    )


NAMES = {
    **llama.NAMES,
    **layer_norm("layer_{l}/attn_norm", "model.layers.{l}.input_layernorm"),
    **layer_norm("layer_{l}/mlp_norm", "model.layers.{l}.post_attention_layernorm"),
    **layer_norm("final_norm", "model.norm"),
}
FAMILY = Family(
    StableLmConfig,
    {"stablelm": Layout(read, NAMES, "model.", classes=("StableLmForCausalLM",))},
    Export(write),
    gguf={"stablelm": Gguf(read_gguf, gguf_reading.NAMES)},
)
