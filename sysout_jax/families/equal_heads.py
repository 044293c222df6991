"""What the families share whose heads have a key each and are together as wide as the model."""

from __future__ import annotations

from dataclasses import dataclass

from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EqualHeadsConfig(ModelConfig):
    """D is cut into equal heads; InputError where it cannot be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.num_heads:
            raise InputError(
                f"d_model {self.d_model} must be a multiple of num_heads {self.num_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads
