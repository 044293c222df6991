"""How rotary frequencies are stretched for contexts longer than the one that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sysout_jax.checks import Flag, Real, Rule, Whole, Word, check, check_fields
from sysout_jax.errors import InputError

_FACTOR = Real(1e-3, 1e6)
#: What every field must be.
RULES: dict[str, Rule] = {
    "factor": _FACTOR,
    "low_freq_factor": _FACTOR,
    "high_freq_factor": _FACTOR,
    "original_context": Whole(),
    "kind": Word(("linear", "llama3", "yarn", "longrope", "factors")),
    "beta_fast": _FACTOR,
    "beta_slow": _FACTOR,
    "truncate": Flag(),
    "magnitude": _FACTOR,
    "query_growth": Real(0, 1e3),
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    `linear` divides all of them, `llama3` only the slow ones, `yarn` those that turn less than `beta_slow` times in the original context and
    less and less of those up to `beta_fast` times, `factors` each by its own; `longrope` too, by `short_factors` in texts that fit the original context.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "factors"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()
    """Divisor of each rotating pair, of kinds `factors` and `longrope` only."""
    short_factors: tuple[float, ...] = ()
    """The same of `longrope` in sequences of at most `original_context` tokens."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Of `yarn`: the first and last blended pair are rounded outwards to whole numbers."""
    magnitude: float = 1.0
    """What turns is multiplied by it, of kinds `yarn` and `longrope` only."""
    query_growth: float = 0.0
    """Queries at position t are multiplied by 1 + this · log(1 + ⌊t / original_context⌋) (Ministral 3)."""

    def __post_init__(self) -> None:
        check_fields(self, RULES, "config field rope_scaling.")
        for name in ("factors", "short_factors"):
            factors = tuple(getattr(self, name))  # JSON knows lists only
            object.__setattr__(self, name, factors)
            for factor in factors:
                check(f"config field rope_scaling.{name}", factor, _FACTOR)
        if len(self.short_factors) != (len(self.factors) if self.kind == "longrope" else 0):
            raise InputError(
                f"rope scaling {self.kind} has {len(self.factors)} factors and {len(self.short_factors)} short_factors; "
                "expected as many of both for longrope, no short ones otherwise"
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"llama3 rope scaling needs high_freq_factor > low_freq_factor, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )
