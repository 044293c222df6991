"""Phi 3 and 4 mini: LLaMA whose q, k, v lie in one matrix and gate and up in another (Abdin et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Whole
from sysout_jax.config import RULES
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, fused, part_of_linear
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.families.writing import norm_fields, rotary_fields, turning

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Phi3Config(LlamaConfig):
    """LLaMA's."""

    family: str = "phi3"


def read(fields: Fields) -> Phi3Config:
    fields.must_be("hidden_act", "silu")
    fields.must_be("attention_bias", False)
    window = fields.take("sliding_window", RULES["context_length"], None)
    return Phi3Config(**read_rotary(fields, eps_default=1e-5, fraction=1.0), sliding_window=window)


def write(config: Phi3Config) -> dict[str, Any]:
    scaling = config.rope_scaling
    long = scaling is not None and scaling.kind in ("yarn", "longrope")
    original = scaling.original_context if scaling and long else config.context_length
    return {
        **rotary_fields(config, "phi3", "Phi3ForCausalLM"),
        **norm_fields(config, "silu"),
        **turning(config),
        "sliding_window": config.sliding_window,
        "original_max_position_embeddings": original,
        "pad_token_id": None,  # the class's own lies beyond a small vocabulary
    }


def read_gguf(file: GgufFile, fields: Fields) -> Phi3Config:
    """A window of 0 says that there is none (Phi 4). Older files leave out that of the 4k models, 2047 (llama.cpp takes it too)."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.RMS_EPS, partial=True)
    window = fields.take(
        "attention.sliding_window", Whole(0), 2047 if plain["context_length"] == 4096 else 0
    )
    return Phi3Config(**plain, sliding_window=window or None)


_GATE_UP = "model.layers.{l}.mlp.gate_up_proj.weight"
NAMES = {
    **llama.NAMES,
    **fused("layer_{l}/attn", "model.layers.{l}.self_attn.qkv_proj", grouped=False),
    "layer_{l}/mlp/gate_proj/kernel": Stored(_GATE_UP, part_of_linear(0, 2)),
    "layer_{l}/mlp/up_proj/kernel": Stored(_GATE_UP, part_of_linear(1, 2)),
}
_GGUF_NAMES = gguf_reading.FUSED_NAMES | {
    "layer_{l}/mlp/gate_proj/kernel": Stored("blk.{l}.ffn_up.weight", part_of_linear(0, 2)),
    "layer_{l}/mlp/up_proj/kernel": Stored("blk.{l}.ffn_up.weight", part_of_linear(1, 2)),
}
FAMILY = Family(
    Phi3Config,
    {"phi3": Layout(read, NAMES, "model.", classes=("Phi3ForCausalLM",))},
    Export(write),
    gguf={"phi3": Gguf(read_gguf, _GGUF_NAMES)},
)
