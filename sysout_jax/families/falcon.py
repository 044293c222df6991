"""Falcon, 7B and the newer layout of 40B and 180B: side by side, few key heads, GELU (Almazrouei et al. 2023). ALiBi (1B) is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag, OrNone, Whole
from sysout_jax.config import RULES, ActivationName, ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Form, Stored, biased, fused_qkv, layer_norm, linear
from sysout_jax.families.reading import read_activation, read_rope
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import activation_name, rotary_fields
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class FalconConfig(RotaryConfig):
    """`parallel` with a `mlp_norm` is the newer layout, without one that of 7B."""

    family: str = "falcon"
    tied_embeddings: bool = True
    activation: ActivationName = "gelu"
    bias: bool = False
    parallel: bool = True
    mlp_norm: bool = False

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=True)
        return LayerSpec(
            HeadsSpec(self.num_heads, self.num_kv_heads, self.head_dim, self.bias, self.bias),
            MlpSpec(self.d_ff, False, self.activation, self.bias, self.bias),
            norm,
            norm if self.mlp_norm or not self.parallel else None,
            parallel=self.parallel,
            rotary=self.rotary(),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True))


FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}


def read(fields: Fields) -> FalconConfig:
    fields.read_aliases(
        {
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_head_kv": "num_kv_heads",
        }
    )
    fields.must_be("alibi", False)
    fields.must_be("apply_residual_connection_post_layernorm", False)
    plain = fields.take_table(FIELDS, norm_eps=1e-5, tied_embeddings=True, context_length=2048)
    heads = plain["num_heads"]
    new = fields.take("new_decoder_architecture", Flag(), False)
    shared = fields.take("multi_query", Flag(), True)
    beside = fields.take("parallel_attn", Flag(), True)
    norms = fields.take("num_ln_in_parallel_attn", OrNone(Whole(1, 2)), None)
    kv_heads = fields.take("num_kv_heads", RULES["num_kv_heads"], heads)
    if not new:
        kv_heads = 1 if shared else heads
    head_dim = plain["d_model"] // heads
    return FalconConfig(
        **plain,
        **read_rope(fields, plain["context_length"], head_dim),
        d_ff=fields.take("ffn_hidden_size", RULES["d_ff"], 4 * plain["d_model"]),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        activation=read_activation(fields, "activation", "gelu"),
        bias=fields.take("bias", Flag(), False),
        parallel=new or beside,
        mlp_norm=new and norms != 1,
    )


def write(config: FalconConfig) -> dict[str, Any]:
    new = config.mlp_norm or config.num_kv_heads not in (1, config.num_heads)
    scaling = {k: v for k, v in rotary_fields(config, "", "").items() if k.startswith("rope_")}
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "new_decoder_architecture": new,
        "multi_query": config.num_kv_heads == 1,
        "num_kv_heads": config.num_kv_heads,
        "parallel_attn": config.parallel,
        "num_ln_in_parallel_attn": (2 if config.mlp_norm else 1) if new else None,
        "ffn_hidden_size": config.d_ff,
        "activation": activation_name(config.activation),
        "bias": config.bias,
        "alibi": False,
        **scaling,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


def read_gguf(file: GgufFile, fields: Fields) -> FalconConfig:
    """The files hold neither the context, which is always 2048 there, nor biases nor another wiring than the parallel one."""
    fields.must_be("tensor_data_layout", "jploski")
    plain = gguf_reading.read_rotary(file, fields, gguf_reading.EPS)
    layers = plain["num_layers"]
    norms = sum(f"blk.{l}.attn_norm_2.weight" in file.tensors for l in range(layers))
    if norms not in (0, layers):
        raise InputError(
            f"{norms} of {layers} layers have a tensor attn_norm_2; expected all or none, download it again"
        )
    return FalconConfig(**plain, mlp_norm=norms > 0)


def _qkv(part: str) -> Form:
    """All of q first with one key head (7B), by key heads otherwise."""
    apart, grouped = fused_qkv(part, False), fused_qkv(part, True)

    def of(config: ModelConfig) -> Form:
        return apart if config.layer(0).heads.kv_heads == 1 else grouped

    return Form(
        apart.shapes,
        lambda x, config: of(config).ours(x, config),
        apart.theirs,
        lambda x, config: of(config).slot(x, config),  # type: ignore[misc]
    )


def _named(part: str, name: str) -> Stored:
    return Stored("transformer.h.{l}.self_attention.query_key_value." + name, _qkv(part))


_H = "transformer.h.{l}"
_NAMES = {
    "embed/embedding": Stored("transformer.word_embeddings.weight"),
    **layer_norm("layer_{l}/attn_norm", f"{_H}.input_layernorm", f"{_H}.ln_attn"),
    **{f"layer_{{l}}/attn/{part}_proj/kernel": _named(part, "weight") for part in "qkv"},
    **{f"layer_{{l}}/attn/{part}_proj/bias": _named(part, "bias") for part in "qkv"},
    **biased("layer_{l}/attn/o_proj", f"{_H}.self_attention.dense"),
    **layer_norm("layer_{l}/mlp_norm", f"{_H}.post_attention_layernorm", f"{_H}.ln_mlp"),
    **biased("layer_{l}/mlp/up_proj", f"{_H}.mlp.dense_h_to_4h"),
    **biased("layer_{l}/mlp/down_proj", f"{_H}.mlp.dense_4h_to_h"),
    **layer_norm("final_norm", "transformer.ln_f"),
    "lm_head/kernel": linear("lm_head.weight"),
}
#: Of two norms, attention's is the second.
_GGUF_NAMES = {
    **gguf_reading.FUSED_NAMES,
    **layer_norm("layer_{l}/attn_norm", "blk.{l}.attn_norm_2", "blk.{l}.attn_norm"),
    **layer_norm("layer_{l}/mlp_norm", "blk.{l}.attn_norm"),
}
_LAYOUT = Layout(read, _NAMES, "transformer.", classes=("FalconForCausalLM", "RWForCausalLM"))
FAMILY = Family(
    FalconConfig,
    {"falcon": _LAYOUT, "RefinedWebModel": _LAYOUT, "RefinedWeb": _LAYOUT},
    Export(write, otherwise=lambda config: config.mlp_norm),
    gguf={"falcon": Gguf(read_gguf, _GGUF_NAMES)},
)
