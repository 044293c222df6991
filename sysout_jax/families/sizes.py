"""Known sizes of models by name."""

from __future__ import annotations

from sysout_jax.config import ModelConfig
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.rope_scaling import RopeScaling


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
