"""config.json of a Hugging Face (or nanoGPT) directory → our config; whatever is neither understood nor off is an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from sysout_jax.config import Gpt2Config, LlamaConfig, ModelConfig, RopeScaling
from sysout_jax.errors import InputError

# Training, generation and bookkeeping: no influence on a forward pass without dropout.
IRRELEVANT = frozenset(
    """_name_or_path architectures attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cls_token_id decoder_start_token_id
    diversity_penalty do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    hidden_dropout id2label initializer_range is_decoder keys_to_ignore_at_inference label2id length_penalty
    max_length max_new_tokens max_window_layers min_length mlp_dropout model_type n_ctx name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads reorder_and_upcast_attn
    repetition_penalty resid_pdrop return_dict return_dict_in_generate sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unsloth_version unsloth_fixed use_bfloat16 use_cache""".split()
)


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
#: Their names of the activation function, the usual one first, and ours.
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


class _Fields:
    """The fields of a config.json, each of which must be asked for, be irrelevant, or be off."""

    def __init__(self, fields: dict[str, Any], source: str):
        self._left = {k: v for k, v in fields.items() if k not in IRRELEVANT}
        self.source = source

    def take(self, name: str, default: Any = ...) -> Any:
        value = self._left.pop(name, None)
        if value is None:
            if default is ...:
                raise InputError(
                    f"{self.source}: field {name} is missing; is this a complete config.json?"
                )
            return default
        return value

    def must_be(self, name: str, default: Any, *also: Any) -> None:
        """The field may be absent or have one of the values that the model implements."""
        value = self.take(name, default)
        if value not in (default, *also):
            expected = " or ".join(repr(v) for v in (default, *also))
            raise InputError(
                f"{self.source}: {name} = {value!r} is not implemented, expected {expected}; "
                "this checkpoint would be computed wrongly"
            )

    def check_nothing_left(self) -> None:
        left = {k: v for k, v in self._left.items() if v is not None and v is not False}
        if left:
            listed = ", ".join(f"{k}={v!r}" for k, v in sorted(left.items()))
            raise InputError(
                f"{self.source}: architectural settings that are not handled: {listed}; "
                "expected none of them (or false / null); this checkpoint would be computed wrongly"
            )


def _rope(fields: _Fields, context: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, from `rope_theta` + `rope_scaling` or transformers 5's `rope_parameters`."""
    theta = fields.take("rope_theta", None)
    scaling = dict(fields.take("rope_scaling", None) or {})
    scaling |= dict(fields.take("rope_parameters", None) or {})
    theta = scaling.pop("rope_theta", theta)
    theta = 10_000.0 if theta is None else float(theta)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    found: RopeScaling | None = None
    if kind == "linear":
        found = RopeScaling(kind="linear", factor=float(scaling.pop("factor")))
    elif kind == "llama3":
        found = RopeScaling(
            kind="llama3",
            factor=float(scaling.pop("factor")),
            low_freq_factor=float(scaling.pop("low_freq_factor")),
            high_freq_factor=float(scaling.pop("high_freq_factor")),
            original_context=int(scaling.pop("original_max_position_embeddings", context)),
        )
    elif kind != "default":
        raise InputError(
            f"{fields.source}: rope scaling {kind!r} is not implemented; expected default, linear or llama3"
        )
    scaling.pop("original_max_position_embeddings", None)
    if scaling:
        raise InputError(f"{fields.source}: rope scaling settings that are not handled: {scaling}")
    return theta, found


def _renamed(fields: _Fields, table: Mapping[str, str], **defaults: Any) -> dict[str, Any]:
    """Our fields by a table of names; those without a default must be there."""
    return {ours: fields.take(theirs, defaults.get(ours, ...)) for ours, theirs in table.items()}


def _llama(fields: _Fields) -> LlamaConfig:
    fields.must_be("hidden_act", "silu")
    bias = bool(fields.take("attention_bias", False))
    plain = _renamed(
        fields,
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
    if window := fields.take("sliding_window", None):
        # within the sliding window attention is plain causal attention, so that far the model is exact
        plain["context_length"] = min(context, window)
    return LlamaConfig(**plain, rope_theta=theta, rope_scaling=scaling, qkv_bias=bias, o_bias=bias)


def _gpt2(fields: _Fields) -> Gpt2Config:
    activation = fields.take("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{fields.source}: activation_function = {activation!r} is not implemented; "
            f"expected one of {sorted(ACTIVATIONS)}"
        )
    fields.must_be("scale_attn_weights", True)
    fields.must_be("scale_attn_by_inverse_layer_idx", False)
    fields.must_be("add_cross_attention", False)
    plain = _renamed(fields, GPT2_FIELDS, norm_eps=1e-5, tied_embeddings=True)
    return Gpt2Config(
        **plain,
        d_ff=fields.take("n_inner", 4 * plain["d_model"]),
        activation=ACTIVATIONS[activation],
        bias=True,
    )


def _nanogpt(fields: _Fields) -> Gpt2Config:
    width = fields.take("n_embd")
    return Gpt2Config(
        vocab_size=fields.take("vocab_size"),
        context_length=fields.take("block_size"),
        d_model=width,
        d_ff=4 * width,
        num_layers=fields.take("n_layer"),
        num_heads=fields.take("n_head"),
        bias=bool(fields.take("bias", True)),
        activation="gelu",
    )


_READERS: dict[str, Callable[[_Fields], ModelConfig]] = {
    "llama": _llama,
    "mistral": _llama,
    "gpt2": _gpt2,
    "nanogpt": _nanogpt,
}
_LAYOUTS = {"mistral": "llama"}


def read_config(fields: dict[str, Any], source: str) -> tuple[str, ModelConfig]:
    """The name table to use (`names.TABLES`) and our config.

    Raises InputError for an unknown architecture, a missing field, or a setting that the model does not implement.
    """
    # nanoGPT's config has no model_type; block_size is its name for the context
    model_type = fields.get("model_type") or ("nanogpt" if "block_size" in fields else None)
    reader = _READERS.get(str(model_type))
    if reader is None:
        given = model_type or fields.get("architectures") or "none named"
        raise InputError(
            f"{source}: architecture {given!r} is unknown; expected one of {', '.join(_READERS)}"
        )
    taken = _Fields(fields, source)
    try:
        config = reader(taken)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        raise InputError(f"{source}: impossible config: {error}") from None
    taken.check_nothing_left()
    return _LAYOUTS.get(str(model_type), str(model_type)), config
