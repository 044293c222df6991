"""What the readers of several families' config.json share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sysout_jax.checks import Real, shown
from sysout_jax.config import RULES, ActivationName, RopeScaling
from sysout_jax.convert.fields import Fields
from sysout_jax.errors import InputError

_FRACTION = Real(0, 1)
#: Their names of activation functions and ours.
ACTIVATIONS: dict[str, ActivationName] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
}


def read_activation(fields: Fields, name: str, default: str) -> ActivationName:
    """The activation function that a field names."""
    value = fields.take_any(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise InputError(
            f"{name} = {shown(value)} is not implemented; expected one of {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[value]


#: Our fields ← those of transformers' newer classes, where only the name differs.
FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "tied_embeddings": "tie_word_embeddings",
}


def read_rotary(
    fields: Fields,
    eps: str | float = "rms_norm_eps",
    *,
    eps_default: float = 1e-6,
    tied: bool = False,
    fraction: float | None = None,
    **defaults: Any,
) -> dict[str, Any]:
    """The fields of `RotaryConfig` from a config.json of transformers' newer classes.

    `eps` is their name of the norms' epsilon, or its value; `fraction` the default share of a head that turns (None: the setting is not
    known there). `defaults` are of our fields.
    """
    fields.read_aliases({"max_sequence_length": "max_position_embeddings"})
    given = {"num_kv_heads": None, "head_dim": None, "tied_embeddings": tied} | defaults
    plain = fields.take_table(FIELDS, **given)
    heads = plain["num_heads"]
    plain["num_kv_heads"] = plain["num_kv_heads"] or heads
    plain["head_dim"] = plain["head_dim"] or plain["d_model"] // heads
    if isinstance(eps, str):
        plain["norm_eps"] = fields.take(eps, RULES["norm_eps"], eps_default)
    else:
        plain["norm_eps"] = eps
    return plain | read_rope(fields, plain["context_length"], plain["head_dim"], fraction)


def read_rope(
    fields: Fields, context: int, head_dim: int, fraction: float | None = None
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rotary_dims`, from `rope_theta` + `rope_scaling` or transformers 5's `rope_parameters`."""
    theta = fields.take("rope_theta", RULES["rope_theta"], 10_000.0)
    scaling = fields.take_fields("rope_scaling", "rope_parameters")
    theta = scaling.take("rope_theta", RULES["rope_theta"], theta)
    plain: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": None}
    if fraction is not None:
        name = "partial_rotary_factor"
        fraction = scaling.take(name, _FRACTION, fields.take(name, _FRACTION, fraction))
        dims = int(head_dim * fraction)
        plain["rotary_dims"] = None if dims == head_dim else dims
    kind = scaling.take_any("rope_type", scaling.take_any("type", "default"))
    if kind == "linear":
        plain["rope_scaling"] = RopeScaling(kind="linear", factor=_factor(scaling, "factor"))
    elif kind == "llama3":
        name = "original_max_position_embeddings"
        plain["rope_scaling"] = RopeScaling(
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
    return plain


def read_windows(
    fields: Fields, num_layers: int, default: Sequence[bool], used: bool = True
) -> dict[str, Any]:
    """`sliding_window` and `sliding_layers`; `default` says which layers have one where no `layer_types` do. Not where it is not `used`."""
    window = fields.take("sliding_window", RULES["context_length"], None)
    kinds = fields.take_any("layer_types")
    layers = list(default)
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != num_layers or set(kinds) - set(known):
            raise InputError(
                f"layer_types is {shown(kinds)}; expected {' or '.join(known)} for each of {num_layers} layers"
            )
        layers = [kind == "sliding_attention" for kind in kinds]
    return windows(window if used else None, layers)


def windows(window: int | None, layers: Sequence[bool]) -> dict[str, Any]:
    """The fields of `RotaryConfig` for a window in these layers."""
    if window is None or not any(layers):
        return {}
    return {"sliding_window": window} | ({} if all(layers) else {"sliding_layers": tuple(layers)})


def _factor(scaling: Fields, name: str) -> float:
    return float(scaling.take(name, RULES[name]))
