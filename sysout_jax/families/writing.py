"""What the writers of several families' config.json share: `reading`, the other way round."""

from __future__ import annotations

from typing import Any

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


def _rope_scaling(config: RotaryConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "factors":
        raise InputError(
            "rotary positions with a divisor for every pair have no name in transformers; expected linear or llama3 scaling, "
            "use --format orbax"
        )
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return fields
