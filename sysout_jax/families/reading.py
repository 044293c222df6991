"""What the readers of several families' config.json share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sysout_jax.checks import shown
from sysout_jax.config import RULES, ActivationName, RopeScaling
from sysout_jax.convert.fields import Fields
from sysout_jax.errors import InputError

#: Their names of activation functions and ours.
ACTIVATIONS: dict[str, ActivationName] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "relu": "relu",
}


def read_renamed(fields: Fields, table: Mapping[str, str], **defaults: Any) -> dict[str, Any]:
    """Our fields by a table of their names; those without a default must be there."""
    return {
        ours: fields.take(theirs, RULES[ours], defaults.get(ours, ...))
        for ours, theirs in table.items()
    }


def read_activation(fields: Fields, name: str, default: str) -> ActivationName:
    """The activation function that a field names."""
    value = fields.take_any(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise InputError(
            f"{name} = {shown(value)} is not implemented; expected one of {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[value]


def read_rope(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
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
