"""Phi 1, 1.5 and 2: attention and MLP side by side after one LayerNorm, heads that turn in part, GELU without a gate (Li et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sysout_jax.config import ActivationName
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, biased, fused, layer_norm
from sysout_jax.families.reading import read_activation, read_rotary
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import activation_name, norm_fields, rotary_fields, turning
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class PhiConfig(RotaryConfig):
    """Everything has a bias, the head too."""

    family: str = "phi"
    activation: ActivationName = "gelu_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tied_embeddings:
            raise InputError("a phi model has a head of its own; expected untied embeddings")

    def layer(self, l: int) -> LayerSpec:
        return LayerSpec(
            HeadsSpec(self.num_heads, self.num_kv_heads, self.head_dim, True, True),
            MlpSpec(self.d_ff, False, self.activation, True, True),
            attn_norm=NormSpec(self.norm_eps, centred=True, bias=True),
            mlp_norm=None,
            parallel=True,
            rotary=self.rotary(),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True), head_bias=True)


def read(fields: Fields) -> PhiConfig:
    fields.must_be("qk_layernorm", False)
    activation = read_activation(fields, "hidden_act", "gelu_new")
    plain = read_rotary(fields, "layer_norm_eps", eps_default=1e-5, fraction=0.5)
    return PhiConfig(**plain, activation=activation)


def read_old(fields: Fields) -> PhiConfig:
    """The first files of Phi 1.5 and 2, whose `model_type` is phi-msft."""
    fields.read_aliases(
        {
            "n_positions": "max_position_embeddings",
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_head_kv": "num_key_value_heads",
            "n_inner": "intermediate_size",
        }
    )
    activation = read_activation(fields, "activation_function", "gelu_new")
    plain = read_rotary(fields, "layer_norm_epsilon", eps_default=1e-5, d_ff=None)
    plain["d_ff"] = plain["d_ff"] or 4 * plain["d_model"]
    dims = fields.take_any("rotary_dim", plain["head_dim"])
    if plain["num_kv_heads"] != plain["num_heads"]:
        raise InputError("n_head_kv differs from n_head; expected the heads of Phi 1.5 or 2")
    return PhiConfig(**plain | {"rotary_dims": dims}, activation=activation)


def write(config: PhiConfig) -> dict[str, Any]:
    return {
        **rotary_fields(config, "phi", "PhiForCausalLM"),
        **norm_fields(config, activation_name(config.activation), "layer_norm_eps"),
        **turning(config),
    }


def read_gguf(file: GgufFile, fields: Fields) -> PhiConfig:
    """As many key heads as heads is what the converter writes for every file; GELU is that of Phi 1.5 and 2."""
    return PhiConfig(**gguf_reading.read_rotary(file, fields, gguf_reading.EPS, partial=True))


_NAMES = {
    "embed/embedding": Stored("model.embed_tokens.weight"),
    **layer_norm("layer_{l}/attn_norm", "model.layers.{l}.input_layernorm"),
    **biased("layer_{l}/attn/q_proj", "model.layers.{l}.self_attn.q_proj"),
    **biased("layer_{l}/attn/k_proj", "model.layers.{l}.self_attn.k_proj"),
    **biased("layer_{l}/attn/v_proj", "model.layers.{l}.self_attn.v_proj"),
    **biased("layer_{l}/attn/o_proj", "model.layers.{l}.self_attn.dense"),
    **biased("layer_{l}/mlp/up_proj", "model.layers.{l}.mlp.fc1"),
    **biased("layer_{l}/mlp/down_proj", "model.layers.{l}.mlp.fc2"),
    **layer_norm("final_norm", "model.final_layernorm"),
    **biased("lm_head", "lm_head"),
}
_OLD_NAMES = {
    "embed/embedding": Stored("transformer.embd.wte.weight"),
    **layer_norm("layer_{l}/attn_norm", "transformer.h.{l}.ln"),
    **fused("layer_{l}/attn", "transformer.h.{l}.mixer.Wqkv", grouped=False),
    **biased("layer_{l}/attn/o_proj", "transformer.h.{l}.mixer.out_proj"),
    **biased("layer_{l}/mlp/up_proj", "transformer.h.{l}.mlp.fc1"),
    **biased("layer_{l}/mlp/down_proj", "transformer.h.{l}.mlp.fc2"),
    **layer_norm("final_norm", "lm_head.ln"),
    **biased("lm_head", "lm_head.linear"),
}
_FUSED = fused("layer_{l}/attn", "blk.{l}.attn_qkv", grouped=False)
#: The first files hold q, k and v in one matrix.
_GGUF_NAMES = gguf_reading.NAMES | {
    ours: replace(gguf_reading.NAMES[ours], otherwise=stored) for ours, stored in _FUSED.items()
}
FAMILY = Family(
    PhiConfig,
    {
        "phi": Layout(read, _NAMES, "model.", classes=("PhiForCausalLM",)),
        "phi-msft": Layout(read_old, _OLD_NAMES, "transformer."),
    },
    Export(write),
    gguf={"phi2": Gguf(read_gguf, _GGUF_NAMES)},
)
