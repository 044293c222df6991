"""GGUF models: config and weights of each architecture, with what the public converters changed undone.

`llama` files hold q and k with rotated pairs as neighbours, and Llama 3's frequency scaling as a tensor of divisors. Everything in the
architecture's namespace is computed with, known to change nothing, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sysout_jax.checks import shown
from sysout_jax.config import RULES, ModelConfig, RopeScaling
from sysout_jax.convert.fields import Fields, naming
from sysout_jax.convert.foreign import ForeignSource, Held
from sysout_jax.convert.gguf_file import PLAIN, UNREADABLE, GgufFile
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.qwen2 import Qwen2Config

ROPE_FACTORS = "rope_freqs.weight"
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

#: Our fields ← their keys.
_SIZES = {
    "context_length": "context_length",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
}
_LLAMA = {
    "num_kv_heads": "attention.head_count_kv",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
#: Keys of an architecture that say nothing about its mathematics.
_HARMLESS = frozenset(
    {"vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
)


class GgufSource(ForeignSource):
    """Weights in a GGUF file, dequantised tensor by tensor."""

    def __init__(self, file: GgufFile, layout: str, config: ModelConfig, used: frozenset[str]):
        self._file = file
        held = {
            name: Held(tensor.shape, _held_dtype(tensor.type))
            for name, tensor in file.tensors.items()
            if name not in used
        }
        super().__init__(file.path, layout, config, held)

    @property
    def stored_as(self) -> dict[str, str]:
        """How each kind of parameter (`mlp/down_proj/kernel`) is stored, over all layers."""
        kinds: dict[str, list[str]] = {}
        for ours, stored in self._stored.items():
            kind = ours.partition("/")[2] if ours.startswith("layer_") else ours
            kinds.setdefault(kind, []).append(self._file.tensors[stored.name].type.name)
        return {kind: ", ".join(dict.fromkeys(names)) for kind, names in kinds.items()}

    def _tensor(self, name: str) -> np.ndarray:
        return self._file.read(name)


def _held_dtype(kind: Any) -> str:
    if kind in UNREADABLE:
        return kind.name
    return PLAIN[kind].name if kind in PLAIN else "float32"


class OpenedGguf(NamedTuple):
    """A GGUF model; `fields` are all of the file's, `accepted` the unknown ones that the user accepts."""

    config: ModelConfig
    source: GgufSource
    fields: dict[str, Any]
    accepted: tuple[str, ...]


def open_gguf(path: Path, accept: Collection[str] = ()) -> OpenedGguf:
    """Open it; InputError for everything that is wrong with it."""
    file = GgufFile(path)
    name = file.fields.get("general.architecture")
    reader = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if reader is None:
        raise InputError(
            f"{path}: architecture {shown(name)} is unknown; expected one of {', '.join(ARCHITECTURES)}"
        )
    if EMBEDDING not in file.tensors:
        raise InputError(f"{path}: holds no {EMBEDDING}; expected a whole language model")
    fields = _fields(file, str(name), accept)
    with naming(path):
        config = reader(file, fields)
        fields.check_nothing_left()
    source = GgufSource(file, f"gguf-{name}", config, frozenset({ROPE_FACTORS}))
    return OpenedGguf(config, source, file.fields, tuple(fields.accepted))


def _fields(file: GgufFile, architecture: str, accept: Collection[str]) -> Fields:
    """The keys in the architecture's namespace; one value per layer is one value where all are equal."""
    prefix = architecture + "."
    named = {
        key.removeprefix(prefix): value
        for key, value in file.fields.items()
        if key.startswith(prefix)
    }
    for key, value in named.items():
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            named[key] = value[0].item()
    kept = {key: value for key, value in named.items() if key not in _HARMLESS}
    return Fields(kept, prefix, accept)


def _llama(file: GgufFile, fields: Fields, config: type[LlamaConfig] = LlamaConfig) -> LlamaConfig:
    fields.must_be("expert_count", 0)
    plain = fields.take_table(_SIZES | _LLAMA, num_kv_heads=None, rope_theta=10_000.0)
    heads, width = plain["num_heads"], plain["d_model"]
    plain["num_kv_heads"] = plain["num_kv_heads"] or heads
    head_dim = fields.take("attention.key_length", RULES["head_dim"], width // heads)
    fields.must_be("attention.value_length", head_dim)
    fields.must_be("rope.dimension_count", head_dim)
    return config(
        **plain,
        vocab_size=file.tensors[EMBEDDING].shape[0],
        head_dim=head_dim,
        rope_scaling=_rope_scaling(file, fields, head_dim),
        tied_embeddings=HEAD not in file.tensors,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
    )


def _qwen2(file: GgufFile, fields: Fields) -> LlamaConfig:
    return _llama(file, fields, Qwen2Config)


def _rope_scaling(file: GgufFile, fields: Fields, head_dim: int) -> RopeScaling | None:
    """Linear, by key, or a divisor for every pair, by tensor (Llama 3)."""
    linear = fields.take("rope.scale_linear", RULES["factor"], 1.0)
    kind = fields.take_any("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise InputError(
            f"rope.scaling.type {shown(kind)} is not implemented; expected none or linear"
        )
    linear = fields.take("rope.scaling.factor", RULES["factor"], linear)
    if ROPE_FACTORS not in file.tensors:
        return None if linear == 1.0 else RopeScaling(kind="linear", factor=linear)
    factors = file.read(ROPE_FACTORS).astype(np.float64).reshape(-1)
    if len(factors) != head_dim // 2 or linear != 1.0:
        raise InputError(
            f"{ROPE_FACTORS} holds {len(factors)} divisors, expected {head_dim // 2} and no other scaling"
        )
    return RopeScaling(kind="factors", factor=1.0, factors=tuple(factors.tolist()))


def _gpt2(file: GgufFile, fields: Fields) -> Gpt2Config:
    return Gpt2Config(
        **fields.take_table(_SIZES | {"norm_eps": "attention.layer_norm_epsilon"}),
        vocab_size=file.tensors[EMBEDDING].shape[0],
        tied_embeddings=HEAD not in file.tensors,
        bias=True,
    )


#: `general.architecture` → its config's reader; the name table is `gguf-<architecture>` in `names.TABLES`.
ARCHITECTURES: dict[str, Callable[[GgufFile, Fields], ModelConfig]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
}
