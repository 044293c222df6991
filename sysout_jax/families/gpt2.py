"""GPT-2: LayerNorm, learned positions, fused QKV, GELU (Radford et al. 2019), in the HF and the nanoGPT convention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.config import RULES, ActivationName
from sysout_jax.families import gguf_reading
from sysout_jax.families.equal_heads import EqualHeadsConfig
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import PER_HEAD, Stored, linear
from sysout_jax.families.reading import ACTIVATIONS, read_activation
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(EqualHeadsConfig):
    """GPT-2 as in transformers (tanh GELU, biases) and as in nanoGPT (exact GELU, biases optional)."""

    family: str = "gpt2"
    tied_embeddings: bool = True
    activation: ActivationName = "gelu_tanh"
    bias: bool = True
    qk_norm: bool = False
    """An RMSNorm with a trained gain on q and k, head by head; ours alone."""

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=self.bias)
        heads = HeadsSpec(
            self.num_heads, self.num_heads, self.head_dim, self.bias, self.bias, fused=True
        )
        if self.qk_norm:
            heads = dataclasses.replace(heads, norm=NormSpec(self.norm_eps))
        mlp = MlpSpec(self.d_ff, False, self.activation, self.bias, self.bias)
        return LayerSpec(heads, mlp, norm, norm)

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=self.bias), positions=0)


#: Our fields ← theirs, where only the name differs; export writes by the same table.
FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}
#: Names under which transformers takes the same fields.
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}
NANOGPT_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "d_model": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "bias": "bias",
}


def read(fields: Fields) -> Gpt2Config:
    fields.read_aliases(ALIASES)
    fields.must_be("n_special", 0)
    fields.must_be("scale_attn_weights", True)
    fields.must_be("scale_attn_by_inverse_layer_idx", False)
    fields.must_be("add_cross_attention", False)
    plain = fields.take_table(FIELDS, norm_eps=1e-5, tied_embeddings=True)
    return Gpt2Config(
        **plain,
        d_ff=fields.take("n_inner", RULES["d_ff"], 4 * plain["d_model"]),
        activation=read_activation(fields, "activation_function", "gelu_new"),
        bias=True,
    )


def read_nanogpt(fields: Fields) -> Gpt2Config:
    plain = fields.take_table(NANOGPT_FIELDS, bias=True)
    return Gpt2Config(**plain, d_ff=4 * plain["d_model"], activation="gelu")


def read_gguf(file: GgufFile, fields: Fields) -> Gpt2Config:
    return Gpt2Config(**gguf_reading.read_sizes(file, fields, gguf_reading.EPS), bias=True)


def write(config: Gpt2Config) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activation,
        "n_inner": config.d_ff,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


def with_their_biases(config: Gpt2Config) -> Gpt2Config:
    return dataclasses.replace(config, bias=True)


NAMES: dict[str, Stored] = {  # HF's Conv1D is stored (in, out)
    "embed/embedding": Stored("transformer.wte.weight"),
    "positions/embedding": Stored("transformer.wpe.weight"),
    "layer_{l}/attn_norm/scale": Stored("transformer.h.{l}.ln_1.weight"),
    "layer_{l}/attn_norm/bias": Stored("transformer.h.{l}.ln_1.bias"),
    "layer_{l}/attn/qkv_proj/kernel": Stored("transformer.h.{l}.attn.c_attn.weight"),
    "layer_{l}/attn/qkv_proj/bias": Stored("transformer.h.{l}.attn.c_attn.bias"),
    "layer_{l}/attn/o_proj/kernel": Stored("transformer.h.{l}.attn.c_proj.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("transformer.h.{l}.attn.c_proj.bias"),
    "layer_{l}/mlp_norm/scale": Stored("transformer.h.{l}.ln_2.weight"),
    "layer_{l}/mlp_norm/bias": Stored("transformer.h.{l}.ln_2.bias"),
    "layer_{l}/mlp/up_proj/kernel": Stored("transformer.h.{l}.mlp.c_fc.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("transformer.h.{l}.mlp.c_fc.bias"),
    "layer_{l}/mlp/down_proj/kernel": Stored("transformer.h.{l}.mlp.c_proj.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("transformer.h.{l}.mlp.c_proj.bias"),
    "final_norm/scale": Stored("transformer.ln_f.weight"),
    "final_norm/bias": Stored("transformer.ln_f.bias"),
    "lm_head/kernel": linear("lm_head.weight"),
}

NANOGPT_NAMES: dict[str, Stored] = {  # the same names, but torch.nn.Linear, stored (out, in)
    ours: linear(stored.name) if ours.endswith("kernel") else stored
    for ours, stored in NAMES.items()
} | {  # what the attention variants of the paper's code add
    "layer_{l}/attn/k_extra": Stored("transformer.h.{l}.attn.k_bias", PER_HEAD),
    "layer_{l}/attn/v_extra": Stored("transformer.h.{l}.attn.v_bias", PER_HEAD),
    "layer_{l}/attn/scale_proj/kernel": linear("transformer.h.{l}.attn.context_scale.0.weight"),
    "layer_{l}/attn/scale_proj/bias": Stored("transformer.h.{l}.attn.context_scale.0.bias"),
}

FAMILY = Family(
    Gpt2Config,
    {
        "gpt2": Layout(read, NAMES, "transformer.", classes=("GPT2LMHeadModel",)),
        "nanogpt": Layout(read_nanogpt, NANOGPT_NAMES, "transformer."),
    },
    Export(write, with_their_biases),
    {"gpt2": Gguf(read_gguf, gguf_reading.NAMES)},
)
