"""What the writers of several families' config.json share: `reading`, the other way round."""

from __future__ import annotations

import math
from typing import Any

from sysout_jax.config import ActivationName, ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families.reading import FIELDS
from sysout_jax.families.rotary import RotaryConfig


def rotary_fields(config: RotaryConfig, model_type: str, architecture: str) -> dict[str, Any]:
    """What transformers' newer classes share; InputError for rotary positions that they have no name for."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


def norm_fields(config: ModelConfig, act: str, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """Activation function and epsilon of norms under those names of theirs."""
    return {"hidden_act": act, eps: config.norm_eps}


def activation_name(ours: ActivationName, tanh: str = "gelu_new") -> str:
    """Their name of our activation function; of the two for GELU by tanh the one that the family uses."""
    return tanh if ours == "gelu_tanh" else ours


def layer_windows(config: RotaryConfig) -> dict[str, Any]:
    """The window, and which layers have it."""
    windows = [config.window(l) is not None for l in range(config.num_layers)]
    return {
        "sliding_window": config.sliding_window,
        "layer_types": ["sliding_attention" if on else "full_attention" for on in windows],
    }


def turning(config: RotaryConfig) -> dict[str, float]:
    """The share of a head that turns, such that transformers' int(Dh · share) is our number of dims."""
    dims = config.rotary_dims or config.head_dim
    share = dims / config.head_dim
    if int(config.head_dim * share) < dims:
        share = math.nextafter(share, 2.0)
    return {"partial_rotary_factor": share}


def _rope_scaling(config: RotaryConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "factors":
        raise InputError(
            "rotary positions with a divisor for every pair have no name in transformers; expected another scaling, "
            "write it as an Orbax directory"
        )
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if scaling.kind == "yarn":
        fields |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow", "truncate")}
    if scaling.kind == "longrope":
        fields |= {"long_factor": scaling.factors, "short_factor": scaling.short_factors}
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    if scaling.kind in ("yarn", "longrope"):
        fields["attention_factor"] = scaling.magnitude
    if scaling.kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_context
    return fields
