"""What the readers of several families' config.json share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sysout_jax.checks import Real, shown
from sysout_jax.config import RULES, ActivationName
from sysout_jax.errors import InputError
from sysout_jax.families.fields import Fields
from sysout_jax.rope_scaling import RopeScaling

_FRACTION = Real(0, 1)
#: Their names of activation functions and ours.
ACTIVATIONS: dict[str, ActivationName] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
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
    theta: float = 10_000.0,
    kv_heads: int | None = None,
    **defaults: Any,
) -> dict[str, Any]:
    """The fields of `RotaryConfig` from a config.json of transformers' newer classes.

    `eps` is their name of the norms' epsilon, or its value; `fraction` the default share of a head that turns (None: the setting is not
    known there). `kv_heads` is for files without the setting (None: as many as heads, which null means everywhere). `defaults` are of our fields.
    """
    fields.read_aliases({"max_sequence_length": "max_position_embeddings"})
    kv_heads = None if fields.has(FIELDS["num_kv_heads"]) else kv_heads
    given = {"num_kv_heads": kv_heads, "head_dim": None, "tied_embeddings": tied} | defaults
    plain = fields.take_table(FIELDS, **given)
    heads = plain["num_heads"]
    plain["num_kv_heads"] = plain["num_kv_heads"] or heads
    plain["head_dim"] = plain["head_dim"] or plain["d_model"] // heads
    if isinstance(eps, str):
        plain["norm_eps"] = fields.take(eps, RULES["norm_eps"], eps_default)
    else:
        plain["norm_eps"] = eps
    return plain | read_rope(fields, plain["context_length"], plain["head_dim"], fraction, theta)


def read_rope(
    fields: Fields,
    context: int,
    head_dim: int,
    fraction: float | None = None,
    theta: float = 10_000.0,
) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rotary_dims`, from `rope_theta` + `rope_scaling` or transformers 5's `rope_parameters`."""
    theta = fields.take("rope_theta", RULES["rope_theta"], theta)
    scaling = fields.take_fields("rope_scaling", "rope_parameters")
    theta = scaling.take("rope_theta", RULES["rope_theta"], theta)
    plain: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": None}
    name = "original_max_position_embeddings"
    # some files have it beside the scaling
    beside = fields.take(name, RULES["original_context"], context)
    if fraction is not None:
        part = "partial_rotary_factor"
        fraction = scaling.take(part, _FRACTION, fields.take(part, _FRACTION, fraction))
        dims = int(head_dim * fraction)
        plain["rotary_dims"] = None if dims == head_dim else dims
    kind = scaling.take_any("type", "default")
    kind = scaling.take_any("rope_type", kind)
    if kind == "linear":
        plain["rope_scaling"] = RopeScaling(kind="linear", factor=_factor(scaling, "factor"))
    elif kind == "llama3":
        plain["rope_scaling"] = RopeScaling(
            kind="llama3",
            factor=_factor(scaling, "factor"),
            low_freq_factor=_factor(scaling, "low_freq_factor"),
            high_freq_factor=_factor(scaling, "high_freq_factor"),
            original_context=scaling.take(name, RULES["original_context"], beside),
        )
    elif kind in ("yarn", "longrope", "su"):
        original = scaling.take(name, RULES["original_context"], beside)
        factor = float(scaling.take("factor", RULES["factor"], context / original))
        read = _read_yarn if kind == "yarn" else _read_longrope
        plain["rope_scaling"] = read(scaling, factor, original)
    elif kind == "dynamic":
        scaling.take("factor", RULES["factor"])  # stretches beyond the context, where we do not go
    elif kind != "default":
        raise InputError(
            f"rope scaling {shown(kind)} is not implemented; expected default, linear, llama3, yarn, longrope or dynamic"
        )
    scaling.take_any(name)
    scaling.must_be("max_position_embeddings", context)  # some files repeat it here
    scaling.check_nothing_left()
    return plain


def _read_yarn(scaling: Fields, factor: float, original: int) -> RopeScaling:
    def grown(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dims = (
        float(scaling.take(name, RULES["factor"], 0.0)) for name in ("mscale", "mscale_all_dim")
    )
    magnitude = grown(mscale) / grown(all_dims) if mscale and all_dims else grown(1.0)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=float(scaling.take("beta_fast", RULES["factor"], 32.0)),
        beta_slow=float(scaling.take("beta_slow", RULES["factor"], 1.0)),
        truncate=scaling.take("truncate", RULES["truncate"], True),
        magnitude=float(scaling.take("attention_factor", RULES["factor"], magnitude)),
        query_growth=float(scaling.take("llama_4_scaling_beta", RULES["query_growth"], 0.0)),
    )


def _read_longrope(scaling: Fields, factor: float, original: int) -> RopeScaling:
    if original < 2:
        raise InputError(
            f"the original context of longrope is {original}; expected at least 2 tokens"
        )
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = {}
    for ours, theirs in (("factors", "long_factor"), ("short_factors", "short_factor")):
        factors[ours] = scaling.take_any(theirs)
        if not isinstance(factors[ours], list):
            raise InputError(
                f"{theirs} is {shown(factors[ours])}; expected a list with a number for every rotating pair"
            )
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_context=original,
        magnitude=float(scaling.take("attention_factor", RULES["factor"], magnitude)),
        **factors,
    )


def read_local_theta(fields: Fields, name: str | None, default: float) -> float:
    """`local_rope_theta`, from field `name` or `rope_parameters` by kind of layer; those of the others become its `rope_parameters`."""
    parts = fields.narrow("rope_parameters", "full_attention")
    given = fields.take(name, RULES["rope_theta"], default) if name else default
    by_kind = fields.inside("rope_parameters", parts)
    local = by_kind.take_fields("sliding_attention")
    local.must_be("rope_type", "default")
    theta = local.take("rope_theta", RULES["rope_theta"], given)
    local.check_nothing_left()
    by_kind.check_nothing_left()
    return float(theta)


def read_windows(
    fields: Fields, num_layers: int, default: Sequence[bool], absent: int, used: bool = True
) -> dict[str, Any]:
    """`sliding_window` and `sliding_layers`; `default` says which layers have one where no `layer_types` do. Not where it is not `used`.

    `absent` is the window of files without the setting; null is none.
    """
    window = fields.take("sliding_window", RULES["context_length"], None, absent)
    kinds = fields.take_any("layer_types")
    layers = list(default)
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in known for kind in kinds):  # fmt: skip
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
