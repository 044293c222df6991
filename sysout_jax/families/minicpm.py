"""MiniCPM: LLaMA with scales on embeddings, on what every layer adds, and on logits (Hu et al. 2024)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sysout_jax.checks import Real, Whole
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading, llama
from sysout_jax.families.family import Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.reading import read_rotary
from sysout_jax.models.spec import EndsSpec, LayerSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

#: Scales of the published models, which the first GGUF files of them do not hold.
SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE = 12.0, 1.4, 256


@dataclass(frozen=True, kw_only=True)
class MiniCPMConfig(LlamaConfig):
    """LLaMA's, with three scales; None: 1."""

    family: str = "minicpm"
    embed_scale: float | None = None
    residual_scale: float | None = None
    head_scale: float | None = None

    def layer(self, l: int) -> LayerSpec:
        return dataclasses.replace(super().layer(l), residual_scale=self.residual_scale)

    def ends(self) -> EndsSpec:
        plain = super().ends()
        return dataclasses.replace(plain, embed_scale=self.embed_scale, head_scale=self.head_scale)


def read(fields: Fields) -> MiniCPMConfig:
    fields.must_be("hidden_act", "silu")
    plain = read_rotary(fields, tied=True)
    depth = fields.take("scale_depth", Real(1e-3, 1e3), 1.0)
    base = fields.take("dim_model_base", Whole(), 1)
    return MiniCPMConfig(
        **plain,
        embed_scale=fields.take("scale_emb", RULES["embed_scale"], 1.0),
        residual_scale=depth / plain["num_layers"] ** 0.5,
        head_scale=base / plain["d_model"],
    )


def read_gguf(file: GgufFile, fields: Fields) -> MiniCPMConfig:
    """Logits are divided by what the file calls their scale."""
    original = "rope.scaling.original_context_length"
    if gguf_reading.LONG_FACTORS in file.tensors and not fields.has(original):
        raise InputError(
            f"{gguf_reading.LONG_FACTORS} without {original}, so that nobody knows from which length on they count; expected the Hugging Face directory"
        )
    plain = gguf_reading.read_paired(file, fields)
    L, D = plain["num_layers"], plain["d_model"]
    return MiniCPMConfig(
        **plain,
        embed_scale=fields.take("embedding_scale", RULES["embed_scale"], SCALE_EMB),
        residual_scale=fields.take("residual_scale", RULES["residual_scale"], SCALE_DEPTH / L**0.5),
        head_scale=1 / fields.take("logit_scale", RULES["head_scale"], D / DIM_MODEL_BASE),
    )


FAMILY = Family(
    MiniCPMConfig,
    {"minicpm": Layout(read, llama.NAMES, "model.", classes=("MiniCPMForCausalLM",))},
    gguf={"minicpm": Gguf(read_gguf, gguf_reading.PAIRED_NAMES)},
)
