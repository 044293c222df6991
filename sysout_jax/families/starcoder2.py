"""StarCoder 2: rotary positions, grouped queries and windows, with LayerNorm and GELU without a gate (Lozhkov et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checks import Flag
from sysout_jax.config import RULES, ActivationName
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, biased, layer_norm, linear
from sysout_jax.families.gemma import TANH
from sysout_jax.families.reading import read_activation, read_rotary
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import activation_name, norm_fields, rotary_fields
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Starcoder2Config(RotaryConfig):
    """`bias` is that of the linear layers; norms always have one."""

    family: str = "starcoder2"
    tied_embeddings: bool = True
    activation: ActivationName = "gelu_tanh"
    bias: bool = True

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=True)
        return LayerSpec(
            HeadsSpec(self.num_heads, self.num_kv_heads, self.head_dim, self.bias, self.bias),
            MlpSpec(self.d_ff, False, self.activation, self.bias, self.bias),
            norm,
            norm,
            attention=AttentionSpec(window=self.window(l)),
            rotary=self.rotary(),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True))


def read(fields: Fields) -> Starcoder2Config:
    fields.read_aliases({"layer_norm_epsilon": "norm_epsilon"})
    fields.must_be("norm_type", "layer_norm")
    fields.must_be("mlp_type", "default")
    fields.must_be("scale_attn_weights", True)
    fields.take_any("activation_function")  # what counts is the other one
    activation = read_activation(fields, "hidden_act", "gelu_pytorch_tanh")
    window = fields.take("sliding_window", RULES["context_length"], None)
    bias = fields.take("use_bias", Flag(), True)
    plain = read_rotary(fields, "norm_epsilon", eps_default=1e-5, tied=True, kv_heads=2)
    return Starcoder2Config(**plain, activation=activation, sliding_window=window, bias=bias)


def write(config: Starcoder2Config) -> dict[str, Any]:
    return {
        **rotary_fields(config, "starcoder2", "Starcoder2ForCausalLM"),
        **norm_fields(config, activation_name(config.activation, TANH), "norm_epsilon"),
        "use_bias": config.bias,
        "sliding_window": config.sliding_window,
    }


def read_gguf(file: GgufFile, fields: Fields) -> Starcoder2Config:
    """The window is not in the files: within it, 4096 tokens, the model is the same."""
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.EPS)
    return Starcoder2Config(**plain, bias="blk.0.attn_q.bias" in file.tensors)


_NAMES = {
    "embed/embedding": Stored("model.embed_tokens.weight"),
    **layer_norm("layer_{l}/attn_norm", "model.layers.{l}.input_layernorm"),
    **biased("layer_{l}/attn/q_proj", "model.layers.{l}.self_attn.q_proj"),
    **biased("layer_{l}/attn/k_proj", "model.layers.{l}.self_attn.k_proj"),
    **biased("layer_{l}/attn/v_proj", "model.layers.{l}.self_attn.v_proj"),
    **biased("layer_{l}/attn/o_proj", "model.layers.{l}.self_attn.o_proj"),
    **layer_norm("layer_{l}/mlp_norm", "model.layers.{l}.post_attention_layernorm"),
    **biased("layer_{l}/mlp/up_proj", "model.layers.{l}.mlp.c_fc"),
    **biased("layer_{l}/mlp/down_proj", "model.layers.{l}.mlp.c_proj"),
    **layer_norm("final_norm", "model.norm"),
    "lm_head/kernel": linear("lm_head.weight"),
}
FAMILY = Family(
    Starcoder2Config,
    {"starcoder2": Layout(read, _NAMES, "model.", classes=("Starcoder2ForCausalLM",))},
    Export(write),
    gguf={"starcoder2": Gguf(read_gguf, gguf_reading.NAMES)},
)
