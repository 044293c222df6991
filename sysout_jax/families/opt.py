"""OPT: LayerNorm before, learned positions, ReLU, biases everywhere (Zhang et al. 2022). The 350M model norms after and is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sysout_jax.checks import Flag, Whole, check
from sysout_jax.config import RULES, ActivationName
from sysout_jax.errors import InputError
from sysout_jax.families.equal_heads import EqualHeadsConfig
from sysout_jax.families.family import Export, Family, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, biased, layer_norm, linear
from sysout_jax.families.reading import read_activation
from sysout_jax.families.writing import activation_name
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

OFFSET = 2  # rows of the table of positions before that of position 0


@dataclass(frozen=True, kw_only=True)
class OptConfig(EqualHeadsConfig):
    """`bias` is that of the linear layers; norms always have one."""

    family: str = "opt"
    tied_embeddings: bool = True
    activation: ActivationName = "relu"
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check("context_length", self.context_length, Whole(1, 2**31 - 1 - OFFSET))

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=True)
        heads = HeadsSpec(self.num_heads, self.num_heads, self.head_dim, self.bias, self.bias)
        return LayerSpec(
            heads, MlpSpec(self.d_ff, False, self.activation, self.bias, self.bias), norm, norm
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True), positions=OFFSET)


FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "d_ff": "ffn_dim",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "tied_embeddings": "tie_word_embeddings",
}


def read(fields: Fields) -> OptConfig:
    fields.must_be("do_layer_norm_before", True)
    fields.must_be("_remove_final_layer_norm", False)
    fields.must_be("layer_norm_elementwise_affine", True)
    plain = fields.take_table(FIELDS, tied_embeddings=True)
    width = fields.take("word_embed_proj_dim", RULES["d_model"], plain["d_model"])
    if width != plain["d_model"]:
        raise InputError(
            f"word_embed_proj_dim {width} is not implemented; expected hidden_size {plain['d_model']}"
        )
    return OptConfig(
        **plain,
        activation=read_activation(fields, "activation_function", "relu"),
        bias=fields.take("enable_bias", Flag(), True),
    )


def write(config: OptConfig) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": activation_name(config.activation),
        "word_embed_proj_dim": config.d_model,
        "enable_bias": config.bias,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


_NAMES = {
    "embed/embedding": Stored("model.decoder.embed_tokens.weight"),
    "positions/embedding": Stored("model.decoder.embed_positions.weight"),
    **layer_norm("layer_{l}/attn_norm", "model.decoder.layers.{l}.self_attn_layer_norm"),
    **biased("layer_{l}/attn/q_proj", "model.decoder.layers.{l}.self_attn.q_proj"),
    **biased("layer_{l}/attn/k_proj", "model.decoder.layers.{l}.self_attn.k_proj"),
    **biased("layer_{l}/attn/v_proj", "model.decoder.layers.{l}.self_attn.v_proj"),
    **biased("layer_{l}/attn/o_proj", "model.decoder.layers.{l}.self_attn.out_proj"),
    **layer_norm("layer_{l}/mlp_norm", "model.decoder.layers.{l}.final_layer_norm"),
    **biased("layer_{l}/mlp/up_proj", "model.decoder.layers.{l}.fc1"),
    **biased("layer_{l}/mlp/down_proj", "model.decoder.layers.{l}.fc2"),
    **layer_norm("final_norm", "model.decoder.final_layer_norm"),
    "lm_head/kernel": linear("lm_head.weight"),
}
FAMILY = Family(
    OptConfig,
    {"opt": Layout(read, _NAMES, "model.", classes=("OPTForCausalLM",))},
    Export(write),
)
