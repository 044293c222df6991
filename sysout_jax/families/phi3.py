"""Phi 3 and 4 mini: LLaMA whose q, k, v lie in one matrix and gate and up in another (Abdin et al. 2024). Long-rope scaling is refused."""

from __future__ import annotations

from dataclasses import dataclass

from sysout_jax.config import RULES
from sysout_jax.convert.fields import Fields
from sysout_jax.convert.forms import Stored, fused, part_of_linear
from sysout_jax.families import llama
from sysout_jax.families.family import Family, Layout
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """LLaMA's."""

    family: str = "phi3"


def read(fields: Fields) -> Phi3Config:
    fields.must_be("hidden_act", "silu")
    fields.must_be("attention_bias", False)
    fields.take_any("original_max_position_embeddings")  # of a scaling that would be refused
    window = fields.take("sliding_window", RULES["context_length"], None)
    return Phi3Config(**read_rotary(fields, eps_default=1e-5, fraction=1.0), sliding_window=window)


_GATE_UP = "model.layers.{l}.mlp.gate_up_proj.weight"
NAMES = {
    **llama.NAMES,
    **fused("layer_{l}/attn", "model.layers.{l}.self_attn.qkv_proj", grouped=False),
    "layer_{l}/mlp/gate_proj/kernel": Stored(_GATE_UP, part_of_linear(0, 2)),
    "layer_{l}/mlp/up_proj/kernel": Stored(_GATE_UP, part_of_linear(1, 2)),
}
FAMILY = Family(Phi3Config, {"phi3": Layout(read, NAMES, "model.", classes=("Phi3ForCausalLM",))})
