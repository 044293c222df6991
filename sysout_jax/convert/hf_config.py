"""config.json of a Hugging Face (or nanoGPT) directory → our config; whatever is neither understood nor off is an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from sysout_jax.checks import shown
from sysout_jax.config import RULES, Gpt2Config, LlamaConfig, ModelConfig, RopeScaling
from sysout_jax.convert.fields import Fields, naming
from sysout_jax.errors import InputError

#: Our fields ← theirs, where only the name differs; `hf_export` writes by the same tables.
LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "mlp_bias": "mlp_bias",
}
GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "d_model": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "norm_eps": "layer_norm_epsilon",
    "tied_embeddings": "tie_word_embeddings",
}
#: Names under which transformers takes the same fields.
GPT2_ALIASES = {
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
#: Their names of the activation function, the usual one first, and ours.
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


def _rope(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from `rope_theta` + `rope_scaling` or transformers 5's `rope_parameters`."""
    theta = fields.take("rope_theta", RULES["rope_theta"], 10_000.0)
    scaling = fields.take_fields("rope_scaling", "rope_parameters")
    theta = scaling.take("rope_theta", RULES["rope_theta"], theta)
    kind = scaling.take_any("rope_type", scaling.take_any("type", "default"))
    found: RopeScaling | None = None
    if kind == "linear":
        found = RopeScaling(kind="linear", factor=_factor(scaling, "factor"))
    elif kind == "llama3":
        name = "original_max_position_embeddings"
        found = RopeScaling(
            kind="llama3",
            factor=_factor(scaling, "factor"),
            low_freq_factor=_factor(scaling, "low_freq_factor"),
            high_freq_factor=_factor(scaling, "high_freq_factor"),
            original_context=scaling.take(name, RULES["original_context"], context),
        )
    elif kind != "default":
        raise InputError(
            f"rope scaling {shown(kind)} is not implemented; expected default, linear or llama3"
        )
    scaling.take_any("original_max_position_embeddings")
    scaling.check_nothing_left()
    return float(theta), found


def _factor(scaling: Fields, name: str) -> float:
    return float(scaling.take(name, RULES[name]))


def _llama(fields: Fields) -> LlamaConfig:
    bias = fields.take("attention_bias", RULES["qkv_bias"], False)
    return _llama_with(fields, qkv_bias=bias, o_bias=bias)


def _mistral(fields: Fields) -> LlamaConfig:
    # without the key, transformers takes 4096; with null, there is no window
    given = fields.has("sliding_window")
    window = fields.take("sliding_window", RULES["sliding_window"], None if given else 4096)
    return _llama_with(fields, sliding_window=window)


def _qwen2(fields: Fields) -> LlamaConfig:
    fields.must_be("use_sliding_window", False)
    fields.take_any("sliding_window")  # not used then
    layers = fields.take_any("layer_types", [])
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise InputError(f"layer_types is {shown(layers)}; expected full_attention in all layers")
    return _llama_with(fields, qkv_bias=True)


def _llama_with(fields: Fields, **more: Any) -> LlamaConfig:
    """What LLaMA and its descendants share, and what they differ in."""
    fields.must_be("hidden_act", "silu")
    fields.read_aliases({"max_sequence_length": "max_position_embeddings"})
    plain = fields.take_table(
        LLAMA_FIELDS,
        num_kv_heads=None,
        head_dim=None,
        norm_eps=1e-6,
        tied_embeddings=False,
        mlp_bias=False,
    )
    heads, context = plain["num_heads"], plain["context_length"]
    if plain["num_kv_heads"] is None:
        plain["num_kv_heads"] = heads
    if plain["head_dim"] is None:
        plain["head_dim"] = plain["d_model"] // heads
    theta, scaling = _rope(fields, context)
    return LlamaConfig(**plain, rope_theta=theta, rope_scaling=scaling, **more)


def _gpt2(fields: Fields) -> Gpt2Config:
    fields.read_aliases(GPT2_ALIASES)
    activation = fields.take_any("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(
            f"activation_function = {shown(activation)} is not implemented; "
            f"expected one of {', '.join(sorted(ACTIVATIONS))}"
        )
    fields.must_be("n_special", 0)
    fields.must_be("scale_attn_weights", True)
    fields.must_be("scale_attn_by_inverse_layer_idx", False)
    fields.must_be("add_cross_attention", False)
    plain = fields.take_table(GPT2_FIELDS, norm_eps=1e-5, tied_embeddings=True)
    return Gpt2Config(
        **plain,
        d_ff=fields.take("n_inner", RULES["d_ff"], 4 * plain["d_model"]),
        activation=ACTIVATIONS[activation],
        bias=True,
    )


def _nanogpt(fields: Fields) -> Gpt2Config:
    plain = fields.take_table(NANOGPT_FIELDS, bias=True)
    return Gpt2Config(**plain, d_ff=4 * plain["d_model"], activation="gelu")


_READERS: dict[str, Callable[[Fields], ModelConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
    "nanogpt": _nanogpt,
}
_LAYOUTS = {"mistral": "llama", "qwen2": "llama"}
#: Classes by which older files say what they are.
_CLASSES = {
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "GPT2LMHeadModel": "gpt2",
}
#: What a `text_config` inside another model's file leaves out: the defaults of transformers.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "vocab_size": 32000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "vocab_size": 32000,
    },
}


class ReadConfig(NamedTuple):
    """What a config.json says."""

    layout: str  # the name table to use (`names.TABLES`)
    config: ModelConfig
    accepted: tuple[str, ...]  # unknown settings that the user accepts


def read_config(fields: dict[str, Any], source: str, accept: Collection[str] = ()) -> ReadConfig:
    """Our config; `accept` names unknown settings to pass over.

    Settings named in `accept` are passed over where nothing here computes with them. Raises InputError for an unknown architecture, a
    missing field, and a setting with a value that the model does not implement; UnknownSettings for settings that it does not know.
    """
    model_type, prefix = _model_type(fields), ""
    inner = fields.get("text_config")
    if model_type not in _READERS and isinstance(inner, dict) and _model_type(inner) in _READERS:
        model_type, prefix = _model_type(inner), "text_config."
        tied = {k: v for k, v in fields.items() if k == "tie_word_embeddings"}
        fields = _DEFAULTS.get(str(model_type), {}) | tied | inner
    reader = _READERS.get(model_type or "")
    if reader is None:
        raise InputError(
            f"{source}: architecture {_architecture(fields)} is unknown; expected one of {', '.join(_READERS)}"
        )
    taken = Fields(fields, prefix, accept)
    with naming(source):
        config = reader(taken)
        taken.check_nothing_left()
    layout = _LAYOUTS.get(str(model_type), str(model_type))
    return ReadConfig(layout, config, tuple(taken.accepted))


def _model_type(fields: Mapping[str, Any]) -> str | None:
    """What the file says it is, by its class where it has no type."""
    if model_type := fields.get("model_type"):
        return model_type if isinstance(model_type, str) else None
    if "block_size" in fields:  # nanoGPT's name for the context; its config has no type
        return "nanogpt"
    classes = fields.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    return _CLASSES.get(named) if isinstance(named, str) else None


def _architecture(fields: Mapping[str, Any]) -> str:
    """What the file calls its architecture."""
    classes = fields.get("architectures")
    named = fields.get("model_type") or (
        classes[0] if isinstance(classes, list) and classes else None
    )
    return "(none named)" if named is None else shown(named)
