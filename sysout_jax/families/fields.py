"""The fields of somebody else's config, each of which must be asked for, be irrelevant, or add nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sysout_jax.checks import Rule, check, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError, UnknownSettings
from sysout_jax.printable import printable_name, some

#: Training, generation and bookkeeping: no influence on a forward pass without dropout.
HARMLESS = frozenset(
    """activation_dropout attention_dropout attention_softmax_in_fp32 attn_implementation attn_pdrop auto_map
    bad_words_ids begin_suppress_tokens cache_implementation chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size diversity_penalty do_sample dropout dtype early_stopping embd_pdrop embedding_dropout
    emb_pdrop encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task flash_attn flash_rotary
    fused_dense gradient_checkpointing hidden_dropout id2label img_processor init_config init_device init_std
    initializer_range is_decoder is_llama_config keys_to_ignore_at_inference label2id layerdrop length_penalty
    max_length max_new_tokens max_window_layers min_length mlp_dropout model_type n_ctx n_special name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores predict_special_tokens prefix pretraining_tp problem_type
    pruned_heads remove_invalid_values reorder_and_upcast_attn repetition_penalty resid_pdrop residual_dropout return_dict
    return_dict_in_generate router_aux_loss_coef router_jitter_noise scale_attention_softmax_in_fp32
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class tokenizer_name top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed use_bfloat16 use_cache
    verbose _attn_implementation_autoset _flash_attn_2_enabled _from_model_config""".split()
)
#: How the names of switches begin or end that add something where they are on, so that off they change nothing;
ADDING = re.compile(r"^(add|use)_|_bias$")
#: unless what they add is a part of every model here: without it the model is another one.
ALWAYS_ON = re.compile(
    r"(^|_)(causal|gated|glu|swiglu|mask|position(s|al)?|residual|rope|rotary|(layer|rms)?_?norm)(_|$)"
)
#: Other switches that change nothing where they are off.
HARMLESS_OFF = frozenset(
    """alibi apply_residual_connection_post_layernorm is_composition is_encoder_decoder is_moe onnx_safe prefix_lm qk_layernorm
    qk_norm rope_interleave rope_interleaved scale_attn_by_inverse_layer_idx use_parallel_residual use_qk_norm""".split()
)
#: How stored weights may be packed. The tensors tell whether they are, so the setting need not.
PACKINGS = ("fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors", "modelopt", "mxfp4")


def _is_harmless(name: str, value: Any) -> bool:
    """Null, a switch that adds nothing, or of a kind that no forward pass reads. Readers take what they compute with first, whatever its name."""
    if value is None or name in HARMLESS:
        return True
    if value is False:
        adding = ADDING.search(name) and not ALWAYS_ON.search(name)
        return bool(adding) or name in HARMLESS_OFF
    if name == "quantization_config" and isinstance(value, Mapping):
        return value.get("quant_method") in PACKINGS
    if name.startswith(("_", "unsloth_")):
        return isinstance(value, str)  # where it came from; a number may be computed with
    return name.endswith(("_token_id", "_token_ids"))


def _shown(value: Any) -> str:
    """A list of one value is that value, as the class of a model stands."""
    return shown(value[0] if isinstance(value, list) and len(value) == 1 else value)


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Within, errors begin with the file that they are about."""
    try:
        yield
    except UnknownSettings as error:
        raise UnknownSettings(f"{source}: {error}", error.names, error.given) from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


class Fields:
    """Raises InputError under their names; the file's name is put before it by who knows it.

    `accept` names unknown settings that the user knows to be harmless; `accepted` lists those that were met.
    """

    def __init__(self, fields: Mapping[str, Any], prefix: str = "", accept: Collection[str] = ()):
        for name in fields:
            if not isinstance(name, str):  # out of a pickle
                raise InputError(f"a setting is called {shown(name)}; expected a name")
        self._left = dict(fields)
        self._prefix, self._accept = prefix, accept
        self.accepted: list[str] = []

    def read_aliases(self, aliases: Mapping[str, str]) -> None:
        """Other names ← ours of fields. Where a file has both, they must agree."""
        for other, name in aliases.items():
            value = self._left.pop(other, None)
            if value is None:
                continue
            given = self._left.setdefault(name, value)
            if type(given) is not type(value) or given != value:
                raise InputError(
                    f"{self._prefix}{name} is {shown(given)} and {self._prefix}{other}, which means the same, is {shown(value)}; "
                    "expected one value"
                )

    def take(self, name: str, rule: Rule, default: Any = ..., absent: Any = ...) -> Any:
        """The field's value, which `rule` accepts; `default` where it is absent or null, `absent` where null means something else."""
        if absent is not ... and name not in self._left:
            return absent
        value = self._left.pop(name, None)
        if value is None and default is not ...:
            return default
        if value is None:
            raise InputError(
                f"field {self._prefix}{name} is missing; expected all settings of its model"
            )
        return check(self._prefix + name, value, rule)

    def take_table(self, table: Mapping[str, str], **defaults: Any) -> dict[str, Any]:
        """Our fields by a table of their names, each checked by our rule; those without a default must be there."""
        return {
            ours: self.take(theirs, RULES[ours], defaults.get(ours, ...))
            for ours, theirs in table.items()
        }

    def has(self, name: str) -> bool:
        """Whether the file has the field and nobody has taken it."""
        return name in self._left

    def peek(self, name: str) -> Any:
        """The field's value, left for whoever takes it; None where it is absent."""
        return self._left.get(name)

    def fill(self, name: str, value: Any) -> None:
        """Give the field this value where it is absent or null."""
        if self._left.get(name) is None:
            self._left[name] = value

    def take_any(self, name: str, default: Any = None) -> Any:
        """The field's value, whatever it is."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def take_fields(self, *names: str) -> Fields:
        """The fields of these objects together, the last one's first; none where all are absent or null."""
        fields: dict[str, Any] = {}
        given = ""
        for name in names:
            value = self.take_any(name, {})
            if not isinstance(value, dict):
                raise InputError(f"{self._prefix}{name} is {shown(value)}; expected an object")
            if value:
                fields, given = fields | value, name
        return self.inside(given, fields)

    def inside(self, name: str, fields: Mapping[str, Any]) -> Fields:
        """Those of an object of that name; what is accepted here is accepted there."""
        nested = Fields(fields, f"{self._prefix}{name}.", self._accept)
        nested.accepted = self.accepted
        return nested

    def narrow(self, name: str, part: str) -> dict[str, Any]:
        """Put one part of an object in its place, where it has it; returns the other parts."""
        value = self._left.get(name)
        if not isinstance(value, dict) or part not in value:
            return {}
        self._left[name] = value[part]
        return {key: other for key, other in value.items() if key != part}

    def must_be(self, name: str, default: Any) -> None:
        """The field may be absent or have the value that the model implements."""
        value = self.take_any(name, default)
        if type(value) is not type(default) or value != default:
            raise InputError(
                f"{name} = {shown(value)} is not implemented, expected {default!r}; "
                "this checkpoint would be computed wrongly"
            )

    def check_nothing_left(self) -> None:
        """Raises UnknownSettings for settings that nobody asked for, that could be mathematics and are not accepted."""
        unknown = {}
        for name, value in sorted(self._left.items()):
            if _is_harmless(name, value):
                continue
            if self._prefix + name in self._accept:
                self.accepted.append(self._prefix + name)
            else:
                unknown[self._prefix + name] = value
        if unknown:
            listed = some(f"{printable_name(k)}={_shown(v)}" for k, v in unknown.items())
            raise UnknownSettings(
                f"settings that are not handled: {listed}; this checkpoint might be computed wrongly; "
                "accept them by name if they change nothing",
                tuple(unknown),
                tuple(self._accept),
            )
