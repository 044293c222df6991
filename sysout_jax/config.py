"""What all model configurations share: frozen dataclasses, checked when they are built.

Letters used for shapes in the whole library: B batch, N sequences, T query position, S key position, D model,
H query heads, K key/value heads, Dh head size, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from sysout_jax.checks import Flag, OrNone, Real, Rule, Whole, Word, check, check_fields, shown
from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name
from sysout_jax.rope_scaling import RULES as SCALING_RULES

if TYPE_CHECKING:
    from sysout_jax.models.spec import EndsSpec, LayerSpec

AttentionName = Literal[
    "default",
    "fixed_bias",
    "context_bias",
    "attention_bias",
    "context_scale",
    "sigmoid",
    "softmax1",
    "learned_sink",
    "gate",
    "gate_elements",
    "softpick",
]
ATTENTION: tuple[str, ...] = get_args(AttentionName)

ActivationName = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"]
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)

#: What every field must be, under our names. Readers of other people's files check by the same rules under theirs.
RULES: dict[str, Rule] = {
    **SCALING_RULES,
    "vocab_size": Whole(),
    "context_length": Whole(),
    "sliding_window": OrNone(Whole()),
    "rotary_dims": OrNone(Whole(2, 2**16)),
    "parallel": Flag(),
    "mlp_norm": Flag(),
    "gate_limit": OrNone(Real(1e-6, 1e6)),
    "clip_qkv": OrNone(Real(1e-6, 1e6)),
    "softcap": OrNone(Real(1e-6, 1e6)),
    "final_softcap": OrNone(Real(1e-6, 1e6)),
    "embed_scale": OrNone(Real(1e-6, 1e6)),
    "residual_scale": OrNone(Real(1e-6, 1e6)),
    "head_scale": OrNone(Real(1e-6, 1e6)),
    "attention_scale": OrNone(Real(1e-6, 1e6)),
    "alibi_max": Real(1e-3, 1e3),
    "d_model": Whole(1, 2**24),
    "d_ff": Whole(1, 2**26),
    "num_experts": Whole(1, 2**12),
    "experts_used": Whole(1, 2**12),
    "shared_experts": Whole(0, 2**12),
    "normalised": Flag(),
    "num_layers": Whole(1, 10_000),
    "num_heads": Whole(1, 2**16),
    "num_kv_heads": Whole(1, 2**16),
    "head_dim": Whole(2, 2**16),
    "norm_eps": Real(1e-30, 1),  # a smaller one is 0 in float32
    "rope_theta": Real(1, 1e15),
    "tied_embeddings": Flag(),
    "qkv_bias": Flag(),
    "qk_norm": Flag(),
    "o_bias": Flag(),
    "mlp_bias": Flag(),
    "bias": Flag(),
    "local_rope_theta": OrNone(Real(1, 1e15)),
    "attention": Word(ATTENTION),
    "extra_keys": Whole(0, 2**10),
    "sigmoid_bias": Word(("context", "length")),
    "activation": Word(ACTIVATIONS),
}


def _check(config: Any, prefix: str) -> None:
    fields = [field.name for field in dataclasses.fields(config)]
    check_fields(config, {name: RULES[name] for name in fields if name in RULES}, prefix)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every decoder-only model here has. Families add their own switches."""

    family: str = ""
    vocab_size: int
    context_length: int
    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    tied_embeddings: bool
    norm_eps: float = 1e-5
    attention: AttentionName = "default"
    """Variant of attention, see `sysout_jax.attention.variants`."""
    sigmoid_bias: Literal["context", "length"] = "context"
    """b of sigmoid attention: −log of the context length, or of the current length (the paper's published code)."""
    extra_keys: int = 0
    """Keys and values that attention_bias adds to every key head, at the positions before the text. 0: one to every query head, at none,
    as in the paper."""

    def __post_init__(self) -> None:
        check("config field family", self.family, Word((type(self).family,)))
        _check(self, "config field ")
        if self.extra_keys and self.attention != "attention_bias":
            raise InputError(
                f"extra_keys is {self.extra_keys}, which only attention_bias has, and attention is {self.attention}; "
                "choose attention_bias, or no extra keys"
            )

    def layer(self, l: int) -> LayerSpec:
        """What layer `l` is made of; every family says it."""
        raise NotImplementedError

    def ends(self) -> EndsSpec:
        """What stands before and after the layers; every family says it."""
        raise NotImplementedError


def config_to_dict(config: ModelConfig) -> dict:
    """Plain JSON-ready form; `sysout_jax.families.config_from_dict` inverts it."""
    return dataclasses.asdict(config)


def built(cls: type, fields: Any, name: str) -> Any:
    """`cls(**fields)` when the names are its own and complete."""
    if not isinstance(fields, dict):
        raise InputError(f"{name} is {shown(fields)}; expected an object")
    own = {field.name: field.default for field in dataclasses.fields(cls)}
    missing = [
        field for field, default in own.items() if default is MISSING and field not in fields
    ]
    unknown = sorted(printable_name(str(field)) for field in set(fields) - set(own))
    if missing:
        raise InputError(f"{name} misses {', '.join(missing)}")
    if unknown:
        raise InputError(f"{name} does not know {', '.join(unknown[:12])}")
    return cls(**fields)
