"""Model configurations: frozen dataclasses, checked when they are built, and one table of known sizes.

Letters used for shapes in the whole library: B batch, N sequences, T query position, S key position, D model,
H query heads, K key/value heads, Dh head size, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import Any, Literal, get_args

from sysout_jax.checks import Flag, OrNone, Real, Rule, Whole, Word, check, check_fields, shown
from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name

AttentionName = Literal[
    "default", "fixed_bias", "context_bias", "attention_bias", "context_scale", "sigmoid"
]
ATTENTION: tuple[str, ...] = get_args(AttentionName)

_FACTOR = Real(1e-3, 1e6)
#: What every field must be, under our names. Readers of other people's files check by the same rules under theirs.
RULES: dict[str, Rule] = {
    "vocab_size": Whole(),
    "context_length": Whole(),
    "d_model": Whole(1, 2**24),
    "d_ff": Whole(1, 2**26),
    "num_layers": Whole(1, 10_000),
    "num_heads": Whole(1, 2**16),
    "num_kv_heads": Whole(1, 2**16),
    "head_dim": Whole(2, 2**16),
    "norm_eps": Real(1e-30, 1),  # a smaller one is 0 in float32
    "rope_theta": Real(1, 1e15),
    "factor": _FACTOR,
    "low_freq_factor": _FACTOR,
    "high_freq_factor": _FACTOR,
    "original_context": Whole(),
    "sliding_window": OrNone(Whole()),
    "tied_embeddings": Flag(),
    "qkv_bias": Flag(),
    "o_bias": Flag(),
    "mlp_bias": Flag(),
    "bias": Flag(),
    "kind": Word(("linear", "llama3", "factors")),
    "attention": Word(ATTENTION),
    "sigmoid_bias": Word(("context", "length")),
    "activation": Word(("gelu", "gelu_tanh")),
}


def _check(config: Any, prefix: str) -> None:
    fields = [field.name for field in dataclasses.fields(config)]
    check_fields(config, {name: RULES[name] for name in fields if name in RULES}, prefix)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched. `linear` divides all of them, `llama3` only the slow ones, `factors` each by its own."""

    kind: Literal["linear", "llama3", "factors"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    factors: tuple[float, ...] = ()
    """Divisor of each rotating pair, of kind `factors` only."""

    def __post_init__(self) -> None:
        _check(self, "config field rope_scaling.")
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON knows lists only
        for factor in self.factors:
            check("config field rope_scaling.factors", factor, _FACTOR)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise InputError(
                f"llama3 rope scaling needs high_freq_factor > low_freq_factor, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )


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

    def __post_init__(self) -> None:
        check("config field family", self.family, Word((type(self).family,)))
        _check(self, "config field ")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """LLaMA, Mistral and Qwen2: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    family: str = "llama"
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    """Keys that a query sees, itself included; None: all before it."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

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
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} must be even, rotary positions turn pairs")
        if self.num_heads * self.head_dim >= 2**31:
            raise InputError(
                f"num_heads {self.num_heads} times head_dim {self.head_dim} must be below 2^31"
            )


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(ModelConfig):
    """GPT-2 as in transformers (tanh GELU, biases) and as in nanoGPT (exact GELU, biases optional)."""

    family: str = "gpt2"
    tied_embeddings: bool = True
    activation: Literal["gelu", "gelu_tanh"] = "gelu_tanh"
    bias: bool = True

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


def _llama(l: int, d: int, h: int, k: int, f: int, v: int, t: int, **more) -> LlamaConfig:
    return LlamaConfig(
        num_layers=l,
        d_model=d,
        num_heads=h,
        num_kv_heads=k,
        head_dim=d // h,
        d_ff=f,
        vocab_size=v,
        context_length=t,
        **more,
    )


def _gpt2(l: int, d: int, h: int, **more) -> Gpt2Config:
    return Gpt2Config(
        num_layers=l,
        d_model=d,
        num_heads=h,
        d_ff=4 * d,
        **{"vocab_size": 50257, "context_length": 1024, **more},
    )


_LLAMA31 = RopeScaling(kind="llama3", factor=8.0)
_LLAMA32 = RopeScaling(kind="llama3", factor=32.0)

# fmt: off
MODEL_SIZES: dict[str, ModelConfig] = {
    "llama-2-7b": _llama(32, 4096, 32, 32, 11008, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 40, 40, 13824, 32000, 4096),
    "llama-2-70b": _llama(80, 8192, 64, 8, 28672, 32000, 4096),
    "llama-3-8b": _llama(32, 4096, 32, 8, 14336, 128256, 8192, rope_theta=5e5),
    "llama-3.1-8b": _llama(32, 4096, 32, 8, 14336, 128256, 131072, rope_theta=5e5, rope_scaling=_LLAMA31),
    "llama-3.2-1b": _llama(16, 2048, 32, 8, 8192, 128256, 131072, rope_theta=5e5, rope_scaling=_LLAMA32, tied_embeddings=True),
    "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000, 32768, sliding_window=4096),
    "tinyllama-120m": _llama(12, 768, 12, 12, 2048, 32000, 2048),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt2-nanogpt": _gpt2(12, 768, 12, vocab_size=50304, bias=False, activation="gelu"),
}
# fmt: on

_FAMILIES: dict[str, type[ModelConfig]] = {"llama": LlamaConfig, "gpt2": Gpt2Config}


def config_to_dict(config: ModelConfig) -> dict:
    """Plain JSON-ready form; `config_from_dict` inverts it."""
    return dataclasses.asdict(config)


def config_from_dict(fields: Any) -> ModelConfig:
    """Rebuild a config written by `config_to_dict`, whoever wrote what is given now.

    Raises InputError when the family is unknown or a field is missing, unexpected or impossible.
    """
    if not isinstance(fields, dict):
        raise InputError(f"config is {shown(fields)}; expected an object")
    family = check("config field family", fields.get("family"), Word(tuple(_FAMILIES)))
    scaling = fields.get("rope_scaling")
    if scaling is not None:
        fields = fields | {
            "rope_scaling": _built(RopeScaling, scaling, "config field rope_scaling")
        }
    return _built(_FAMILIES[family], fields, f"config of family {family}")


def _built(cls: type, fields: Any, name: str) -> Any:
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
