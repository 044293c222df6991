"""Model configurations: frozen dataclasses, checked when they are built, and one table of known sizes.

Letters used for shapes in the whole library: B batch, N sequences, T query position, S key position, D model,
H query heads, K key/value heads, Dh head size, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

AttentionName = Literal[
    "default", "fixed_bias", "context_bias", "attention_bias", "context_scale", "sigmoid"
]
ATTENTION: tuple[str, ...] = get_args(AttentionName)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched. `linear` divides all of them, `llama3` only the slow ones."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(
                f"rope scaling kind {self.kind!r} is unknown; expected linear or llama3"
            )
        if self.factor <= 0:
            raise ValueError(f"rope scaling factor {self.factor} must be positive")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
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
        for field in ("vocab_size", "context_length", "d_model", "d_ff", "num_layers", "num_heads"):
            value = getattr(self, field)
            if type(value) is not int or not 0 < value < 2**31:  # arrays are indexed by int32
                raise ValueError(
                    f"config field {field} is {value!r}; expected a positive integer below 2^31"
                )
        for field, names in (("attention", ATTENTION), ("sigmoid_bias", ("context", "length"))):
            if getattr(self, field) not in names:
                raise ValueError(
                    f"config field {field} is {getattr(self, field)!r}; expected one of {', '.join(names)}"
                )


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """LLaMA and its descendants: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    family: str = "llama"
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even, rotary positions turn pairs")


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
            raise ValueError(
                f"d_model {self.d_model} must be a multiple of num_heads {self.num_heads}"
            )
        if self.activation not in ("gelu", "gelu_tanh"):
            raise ValueError(
                f"activation {self.activation!r} is unknown; expected gelu or gelu_tanh"
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
    "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000, 4096),  # context = its sliding window
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


def config_from_dict(fields: dict) -> ModelConfig:
    """Rebuild a config written by `config_to_dict`.

    Raises ValueError when the family is unknown or a field is missing, unexpected or impossible.
    """
    fields = dict(fields)
    family = fields.get("family")
    cls = _FAMILIES.get(str(family))
    if cls is None:
        raise ValueError(f"model family {family!r} is unknown; expected one of {sorted(_FAMILIES)}")
    if fields.get("rope_scaling") is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(f"config of family {family}: {error}") from None
