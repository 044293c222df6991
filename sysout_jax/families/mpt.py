"""MPT: ALiBi in place of positions, no bias anywhere, GELU (MosaicML 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checks import shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading
from sysout_jax.families.equal_heads import EqualHeadsConfig
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, fused, linear
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class MptConfig(EqualHeadsConfig):
    """Slopes run down to 2^-alibi_max."""

    family: str = "mpt"
    tied_embeddings: bool = True
    alibi_max: float = 8.0
    attention_scale: float | None = None
    """None: 1/√Dh."""
    clip_qkv: float | None = None

    def slopes(self) -> tuple[float, ...]:
        """2^(−m max/H) for heads m = 1 … H; of the next power of two every second one first where H is none (Press et al. 2022)."""
        count = 2 ** math.ceil(math.log2(self.num_heads))
        all_slopes = [2.0 ** (-m * self.alibi_max / count) for m in range(1, count + 1)]
        if count != self.num_heads:
            all_slopes = [*all_slopes[1::2], *all_slopes[::2]]
        return tuple(all_slopes[: self.num_heads])

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True)
        heads = HeadsSpec(self.num_heads, self.num_heads, self.head_dim, clip=self.clip_qkv)
        return LayerSpec(
            heads,
            MlpSpec(self.d_ff, False, "gelu"),
            norm,
            norm,
            attention=AttentionSpec(scale=self.attention_scale, alibi=self.slopes()),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True))


FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_seq_len",
    "d_model": "d_model",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}


def read(fields: Fields) -> MptConfig:
    attention = fields.take_fields("attn_config")
    attention.must_be("attn_type", "multihead_attention")
    attention.must_be("alibi", True)
    for off in ("qk_ln", "qk_gn", "rope", "prefix_lm", "attn_uses_sequence_id"):
        attention.must_be(off, False)
    attention.take_any("attn_impl")
    limit = attention.take("alibi_bias_max", RULES["alibi_max"], 8)
    scale = attention.take("softmax_scale", RULES["attention_scale"], None)
    clip = attention.take("clip_qkv", RULES["clip_qkv"], None)
    attention.check_nothing_left()
    fields.must_be("no_bias", True)
    fields.must_be("embedding_fraction", 1.0)
    fields.take_any("learned_pos_emb")  # nothing is learned where ALiBi is
    kind = fields.take_any("norm_type", "low_precision_layernorm")
    if kind not in ("layernorm", "low_precision_layernorm"):
        raise InputError(f"norm_type {shown(kind)} is not implemented; expected layernorm")
    plain = fields.take_table(FIELDS, norm_eps=1e-5, tied_embeddings=True)
    ratio = fields.take("expansion_ratio", RULES["num_heads"], 4)
    return MptConfig(
        **plain,
        d_ff=ratio * plain["d_model"],
        alibi_max=float(limit),
        attention_scale=scale,
        clip_qkv=clip,
    )


def write(config: MptConfig) -> dict[str, Any]:
    if config.alibi_max != 8:
        raise InputError(
            f"slopes down to 2^-{config.alibi_max:g} are not computed in transformers, whose class has 2^-8 always; "
            "write it as an Orbax directory"
        )
    return {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "expansion_ratio": config.d_ff // config.d_model,
        "attn_config": {
            "alibi": True,
            "clip_qkv": config.clip_qkv,
            "softmax_scale": config.attention_scale,
        },
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


def read_gguf(file: GgufFile, fields: Fields) -> MptConfig:
    """Without ALiBi (a bias of 0) positions would be learned, which is refused."""
    plain = gguf_reading.read_sizes(file, fields, gguf_reading.EPS)
    fields.must_be("attention.head_count_kv", plain["num_heads"])
    return MptConfig(
        **plain,
        alibi_max=fields.take("attention.max_alibi_bias", RULES["alibi_max"]),
        clip_qkv=fields.take("attention.clamp_kqv", RULES["clip_qkv"], None),
    )


_NAMES = {
    "embed/embedding": Stored("transformer.wte.weight"),
    "layer_{l}/attn_norm/scale": Stored("transformer.blocks.{l}.norm_1.weight"),
    **fused("layer_{l}/attn", "transformer.blocks.{l}.attn.Wqkv", grouped=False),
    "layer_{l}/attn/o_proj/kernel": linear("transformer.blocks.{l}.attn.out_proj.weight"),
    "layer_{l}/mlp_norm/scale": Stored("transformer.blocks.{l}.norm_2.weight"),
    "layer_{l}/mlp/up_proj/kernel": linear("transformer.blocks.{l}.ffn.up_proj.weight"),
    "layer_{l}/mlp/down_proj/kernel": linear("transformer.blocks.{l}.ffn.down_proj.weight"),
    "final_norm/scale": Stored("transformer.norm_f.weight"),
    "lm_head/kernel": linear("lm_head.weight"),
}
FAMILY = Family(
    MptConfig,
    {"mpt": Layout(read, _NAMES, "transformer.", classes=("MPTForCausalLM", "MptForCausalLM"))},
    Export(write),
    gguf={"mpt": Gguf(read_gguf, gguf_reading.FUSED_NAMES)},
)
