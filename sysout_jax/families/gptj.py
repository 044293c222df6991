"""GPT-J: attention and MLP side by side after one norm, heads that turn in part, a head with a bias (Wang and Komatsuzaki 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sysout_jax.checks import Whole
from sysout_jax.config import RULES, ActivationName
from sysout_jax.families.family import Export, Family, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import PAIRED_LINEAR, Stored, biased, layer_norm, linear
from sysout_jax.families.reading import read_activation
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import activation_name
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec


@dataclass(frozen=True, kw_only=True)
class GptjConfig(RotaryConfig):
    """Attention has no biases, the MLP and the head have them."""

    family: str = "gptj"
    activation: ActivationName = "gelu_tanh"

    def layer(self, l: int) -> LayerSpec:
        return LayerSpec(
            HeadsSpec(self.num_heads, self.num_kv_heads, self.head_dim),
            MlpSpec(self.d_ff, False, self.activation, True, True),
            NormSpec(self.norm_eps, centred=True, bias=True),
            None,
            parallel=True,
            rotary=self.rotary(l),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True), head_bias=True)


FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}


def read(fields: Fields) -> GptjConfig:
    fields.must_be("rotary", True)
    fields.must_be("scale_attn_weights", True)
    scaling = fields.take_fields("rope_scaling", "rope_parameters")
    scaling.must_be("rope_type", "gptj" if scaling.has("rope_type") else "default")
    scaling.check_nothing_left()
    plain = fields.take_table(FIELDS, norm_eps=1e-5, tied_embeddings=False)
    head_dim = plain["d_model"] // plain["num_heads"]
    turning = fields.take("rotary_dim", Whole(2, head_dim), 64)
    return GptjConfig(
        **plain,
        d_ff=fields.take("n_inner", RULES["d_ff"], 4 * plain["d_model"]),
        num_kv_heads=plain["num_heads"],
        head_dim=head_dim,
        rotary_dims=None if turning == head_dim else turning,
        activation=read_activation(fields, "activation_function", "gelu_new"),
    )


def write(config: GptjConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "n_inner": config.d_ff,
        "rotary_dim": config.rotary_dims or config.head_dim,
        "activation_function": activation_name(config.activation),
    }


_H = "transformer.h.{l}"
_NAMES = {
    "embed/embedding": Stored("transformer.wte.weight"),
    **layer_norm("layer_{l}/attn_norm", f"{_H}.ln_1"),
    "layer_{l}/attn/q_proj/kernel": Stored(f"{_H}.attn.q_proj.weight", PAIRED_LINEAR),
    "layer_{l}/attn/k_proj/kernel": Stored(f"{_H}.attn.k_proj.weight", PAIRED_LINEAR),
    "layer_{l}/attn/v_proj/kernel": linear(f"{_H}.attn.v_proj.weight"),
    "layer_{l}/attn/o_proj/kernel": linear(f"{_H}.attn.out_proj.weight"),
    **biased("layer_{l}/mlp/up_proj", f"{_H}.mlp.fc_in"),
    **biased("layer_{l}/mlp/down_proj", f"{_H}.mlp.fc_out"),
    **layer_norm("final_norm", "transformer.ln_f"),
    **biased("lm_head", "lm_head"),
}
FAMILY = Family(
    GptjConfig,
    {"gptj": Layout(read, _NAMES, "transformer.", classes=("GPTJForCausalLM",))},
    Export(write),
)
