"""What the families with rotary positions and grouped queries share."""

from __future__ import annotations

from dataclasses import dataclass

from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.models.spec import Rotary
from sysout_jax.rope_scaling import RopeScaling


@dataclass(frozen=True, kw_only=True)
class RotaryConfig(ModelConfig):
    """Sizes of heads, rotary positions, and windows."""

    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_dims: int | None = None
    """Dims of every head that turn, from the first on; None: all."""
    sliding_window: int | None = None
    """Keys that a query sees, itself included; None: all before it."""
    sliding_layers: tuple[bool, ...] = ()
    """Which layers have the window; empty: all of them."""
    local_rope_theta: float | None = None
    """Base of the layers with a window, whose positions are not scaled; None: they turn as the others do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise InputError(
                f"config field rope_scaling is {shown(self.rope_scaling)}; expected a RopeScaling, or none"
            )
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.rotary_dims is None:
            if self.head_dim % 2:
                raise InputError(
                    f"head_dim {self.head_dim} must be even, rotary positions turn pairs"
                )
        elif self.rotary_dims % 2 or self.rotary_dims > self.head_dim:
            raise InputError(
                f"rotary_dims {self.rotary_dims} must be even and at most head_dim {self.head_dim}"
            )
        if self.num_heads * self.head_dim >= 2**31:
            raise InputError(
                f"num_heads {self.num_heads} times head_dim {self.head_dim} must be below 2^31"
            )
        scaling = self.rope_scaling
        if scaling and scaling.kind == "yarn" and self.rope_theta == 1:
            raise InputError(
                "rope_theta is 1; expected more with yarn, whose pairs turn at different speeds"
            )
        pairs = (self.rotary_dims or self.head_dim) // 2
        if scaling and scaling.kind == "longrope" and len(scaling.factors) != pairs:
            raise InputError(
                f"rope_scaling has {len(scaling.factors)} factors; expected one for each of the {pairs} pairs that turn"
            )
        layers = self.sliding_layers
        if not isinstance(layers, tuple | list) or not all(type(on) is bool for on in layers):
            raise InputError(
                f"config field sliding_layers is {shown(layers)}; expected true or false for each layer"
            )
        object.__setattr__(self, "sliding_layers", tuple(layers))  # JSON knows lists only
        if layers and len(layers) < self.num_layers:
            raise InputError(
                f"config field sliding_layers names {len(layers)} layers; expected {self.num_layers}"
            )

    def rotary(self, l: int = 0) -> Rotary:
        """Of layer `l`."""
        dims = self.rotary_dims or self.head_dim
        if self.local_rope_theta is not None and self.window(l) is not None:
            return Rotary(dims, self.local_rope_theta)
        return Rotary(dims, self.rope_theta, self.rope_scaling)

    def window(self, l: int) -> int | None:
        """Of layer `l`."""
        return self.sliding_window if not self.sliding_layers or self.sliding_layers[l] else None
