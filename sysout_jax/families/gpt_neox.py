"""GPT-NeoX (Pythia, RedPajama): attention and MLP side by side after norms of their own, heads that turn in part (Black et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sysout_jax.checks import Flag
from sysout_jax.config import ActivationName
from sysout_jax.families import gguf_reading
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored, biased, fused, layer_norm, linear
from sysout_jax.families.reading import read_activation, read_rotary
from sysout_jax.families.rotary import RotaryConfig
from sysout_jax.families.writing import activation_name, norm_fields, rotary_fields, turning
from sysout_jax.models.spec import EndsSpec, HeadsSpec, LayerSpec, MlpSpec, NormSpec

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True, kw_only=True)
class GptNeoxConfig(RotaryConfig):
    """Attention's linear layers may lack biases, the MLP's have them."""

    family: str = "gpt_neox"
    activation: ActivationName = "gelu"
    bias: bool = True
    parallel: bool = True

    def layer(self, l: int) -> LayerSpec:
        norm = NormSpec(self.norm_eps, centred=True, bias=True)
        return LayerSpec(
            HeadsSpec(self.num_heads, self.num_kv_heads, self.head_dim, self.bias, self.bias),
            MlpSpec(self.d_ff, False, self.activation, True, True),
            norm,
            norm,
            parallel=self.parallel,
            rotary=self.rotary(),
        )

    def ends(self) -> EndsSpec:
        return EndsSpec(NormSpec(self.norm_eps, centred=True, bias=True))


def read(fields: Fields) -> GptNeoxConfig:
    fields.read_aliases({"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"})
    activation = read_activation(fields, "hidden_act", "gelu")
    return GptNeoxConfig(
        **read_rotary(fields, "layer_norm_eps", eps_default=1e-5, fraction=0.25),
        activation=activation,
        bias=fields.take("attention_bias", Flag(), True),
        parallel=fields.take("use_parallel_residual", Flag(), True),
    )


def write(config: GptNeoxConfig) -> dict[str, Any]:
    fields = rotary_fields(config, "gpt_neox", "GPTNeoXForCausalLM")
    del fields["num_key_value_heads"], fields["head_dim"]  # which the class does not know
    return {
        **fields,
        **norm_fields(config, activation_name(config.activation), "layer_norm_eps"),
        "rotary_pct": turning(config)["partial_rotary_factor"],
        "rotary_emb_base": config.rope_theta,
        "attention_bias": config.bias,
        "use_parallel_residual": config.parallel,
    }


def read_gguf(file: GgufFile, fields: Fields) -> GptNeoxConfig:
    return GptNeoxConfig(
        **gguf_reading.read_rotary(file, fields, gguf_reading.EPS, partial=True),
        bias="blk.0.attn_qkv.bias" in file.tensors,
        parallel=fields.take("use_parallel_residual", Flag()),
    )


_NAMES = {
    "embed/embedding": Stored("gpt_neox.embed_in.weight"),
    **layer_norm("layer_{l}/attn_norm", "gpt_neox.layers.{l}.input_layernorm"),
    **fused("layer_{l}/attn", "gpt_neox.layers.{l}.attention.query_key_value", grouped=True),
    **biased("layer_{l}/attn/o_proj", "gpt_neox.layers.{l}.attention.dense"),
    **layer_norm("layer_{l}/mlp_norm", "gpt_neox.layers.{l}.post_attention_layernorm"),
    **biased("layer_{l}/mlp/up_proj", "gpt_neox.layers.{l}.mlp.dense_h_to_4h"),
    **biased("layer_{l}/mlp/down_proj", "gpt_neox.layers.{l}.mlp.dense_4h_to_h"),
    **layer_norm("final_norm", "gpt_neox.final_layer_norm"),
    "lm_head/kernel": linear("embed_out.weight"),
}
FAMILY = Family(
    GptNeoxConfig,
    {"gpt_neox": Layout(read, _NAMES, "gpt_neox.", classes=("GPTNeoXForCausalLM",))},
    Export(write),
    gguf={"gptneox": Gguf(read_gguf, gguf_reading.FUSED_NAMES)},
)
