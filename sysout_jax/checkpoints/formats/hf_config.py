"""config.json of a Hugging Face (or nanoGPT) directory → our config; whatever is neither understood nor harmless is an error."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families import LAYOUTS
from sysout_jax.families.fields import Fields, naming
from sysout_jax.printable import printable_name, some

_CLASSES = {name: kind for kind, layout in LAYOUTS.items() for name in layout.classes}
#: How the names of classes end that predict the next token.
_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")
#: The same models saved without their head; `LlamaBidirectionalModel` is another one.
_BARE = {
    name.removesuffix(end) + bare
    for name in _CLASSES
    for end in _NEXT_TOKEN
    if name.endswith(end)
    for bare in ("Model", "TextModel")
}


class ReadConfig(NamedTuple):
    """What a config.json says."""

    layout: str  # of `LAYOUTS`
    config: ModelConfig
    accepted: tuple[str, ...]  # unknown settings that the user accepts


def read_config(fields: dict[str, Any], source: str, accept: Collection[str] = ()) -> ReadConfig:
    """Our config; `accept` names unknown settings to pass over.

    Settings named in `accept` are passed over where nothing here computes with them. Raises InputError for an unknown architecture, a
    missing field, and a setting with a value that the model does not implement; UnknownSettings for settings that it does not know.
    """
    model_type, prefix = _model_type(fields), ""
    inner = fields.get("text_config")
    # some files name the text model's type outside, too
    outside = model_type not in LAYOUTS or "vocab_size" not in fields
    if outside and isinstance(inner, dict) and _model_type(inner) in LAYOUTS:
        model_type, prefix = _model_type(inner), "text_config."
        tied = {k: v for k, v in fields.items() if k == "tie_word_embeddings"}
        fields = {**LAYOUTS[model_type or ""].defaults, **tied, **inner}
    if model_type not in LAYOUTS:
        raise InputError(
            f"{source}: architecture {_architecture(fields)} is unknown; expected one of {some(_nearest(fields))}"
        )
    with naming(source):
        taken = Fields(fields, prefix, accept)
        _check_causal(taken)
        config = LAYOUTS[model_type].read(taken)
        taken.check_nothing_left()
    return ReadConfig(model_type, config, tuple(taken.accepted))


def _check_causal(taken: Fields) -> None:
    """Settings by which transformers computes a model of any type without its causal mask. A class that is unknown is left, to be accepted or not."""
    if taken.has("is_causal") and (value := taken.take_any("is_causal")) is not True:  # nor null
        raise InputError(
            f"is_causal = {shown(value)} is not implemented, expected True; this checkpoint would be computed wrongly"
        )
    classes = taken.peek("architectures")
    if classes == [] or (isinstance(classes, list) and any(map(_is_causal_class, classes))):
        taken.take_any("architectures")


def _is_causal_class(name: Any) -> bool:
    return isinstance(name, str) and (name.endswith(_NEXT_TOKEN) or name in _BARE)


def _model_type(fields: Mapping[str, Any]) -> str | None:
    """What the file says it is, by its class where it has no type."""
    if model_type := fields.get("model_type"):
        return model_type if isinstance(model_type, str) else None
    if "block_size" in fields:  # nanoGPT's name for the context; its config has no type
        return "nanogpt"
    classes = fields.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else None
    return _CLASSES.get(named) if isinstance(named, str) else None


def _nearest(fields: Mapping[str, Any]) -> list[str]:
    """All names that are known, those that look like the file's first."""
    given = printable_name(str(fields.get("model_type") or ""))
    near = difflib.get_close_matches(given, LAYOUTS, 3)
    return [*near, *(name for name in LAYOUTS if name not in near)]


def _architecture(fields: Mapping[str, Any]) -> str:
    """What the file calls its architecture."""
    classes = fields.get("architectures")
    named = fields.get("model_type") or (
        classes[0] if isinstance(classes, list) and classes else None
    )
    return "(none named)" if named is None else shown(named)
