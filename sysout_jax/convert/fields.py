"""The fields of somebody else's config, each of which must be asked for, be irrelevant, or be off."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sysout_jax.checks import Rule, check, shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError, UnknownSettings
from sysout_jax.printable import printable_name, some

# Training, generation and bookkeeping: no influence on a forward pass without dropout.
IRRELEVANT = frozenset(
    """architectures attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward
    diversity_penalty do_sample dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task gradient_checkpointing
    hidden_dropout id2label initializer_range is_decoder keys_to_ignore_at_inference label2id length_penalty
    max_length max_new_tokens max_window_layers min_length mlp_dropout model_type n_ctx name_or_path
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores prefix pretraining_tp problem_type pruned_heads reorder_and_upcast_attn
    repetition_penalty resid_pdrop return_dict return_dict_in_generate summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unsloth_version unsloth_fixed use_bfloat16 use_cache
    is_llama_config num_labels predict_special_tokens transformers.js_config""".split()
)


def is_irrelevant(name: str) -> bool:
    """Whether no family computes with a setting of this name: the list above, private names, and ids of special tokens."""
    return name in IRRELEVANT or name.startswith("_") or name.endswith(("_token_id", "_token_ids"))


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Within, errors begin with the file that they are about."""
    try:
        yield
    except UnknownSettings as error:
        raise UnknownSettings(f"{source}: {error}", error.names) from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


class Fields:
    """Raises InputError under their names; the file's name is put before it by who knows it.

    Settings named in `accept` are passed over although they are not computed with.
    """

    def __init__(self, fields: Mapping[str, Any], prefix: str = "", accept: Collection[str] = ()):
        self._left = {k: v for k, v in fields.items() if not is_irrelevant(k)}
        self._prefix = prefix
        self._accept = accept

    def take(self, name: str, rule: Rule, default: Any = ...) -> Any:
        """The field's value, which `rule` accepts; `default` where it is absent or null."""
        value = self._left.pop(name, None)
        if value is None and default is not ...:
            return default
        if value is None:
            raise InputError(
                f"field {self._prefix}{name} is missing; is this a complete config.json?"
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
                raise InputError(f"{name} is {shown(value)}; expected an object")
            if value:
                fields, given = fields | value, name
        return Fields(fields, f"{given}.", self._accept)

    def take_alias(self, name: str, alias: str) -> None:
        """Take `alias` for `name` where only it is given; InputError where both are and differ."""
        own, other = self._left.get(name), self._left.pop(alias, None)
        if own is None:
            self._left[name] = other
        elif other is not None and (type(own) is not type(other) or own != other):
            raise InputError(
                f"{self._prefix}{name} is {shown(own)} and {self._prefix}{alias}, which means the same, is {shown(other)}; "
                "expected one value"
            )

    def must_be(self, name: str, default: Any) -> None:
        """The field may be absent or have the value that the model implements."""
        value = self.take_any(name, default)
        if type(value) is not type(default) or value != default:
            raise InputError(
                f"{name} = {shown(value)} is not implemented, expected {default!r}; "
                "this checkpoint would be computed wrongly"
            )

    def check_nothing_left(self) -> None:
        """Raises UnknownSettings for what nothing asked for, is on, and is not accepted."""
        left = {
            self._prefix + k: v
            for k, v in sorted(self._left.items())
            if v is not None and v is not False and self._prefix + k not in self._accept
        }
        if left:
            listed = some(f"{printable_name(k)}={shown(v)}" for k, v in left.items())
            raise UnknownSettings(
                f"settings that are not handled: {listed}; this checkpoint might be computed wrongly; "
                "accept them by name if they change nothing",
                tuple(left),
            )
