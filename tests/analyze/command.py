"""What tests of the analyses' command lines share: a small model on disk, a call, and a directory as a value."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sysout_jax.commands.cli import run
from sysout_jax.data.demo import byte_tokenizer

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
}


def write_model(directory: Path, **changes) -> Path:
    """A small random LLaMA in Hugging Face's format, its config changed as told, with a byte tokenizer."""
    directory.mkdir()
    config = CONFIG | changes
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    D, F, V = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size"))
    tensors = {
        "model.embed_tokens.weight": matrix(V, D),
        "lm_head.weight": matrix(V, D),
        "model.norm.weight": matrix(D),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (D, D),
            "self_attn.k_proj": (D // 2, D),
            "self_attn.v_proj": (D // 2, D),
            "self_attn.o_proj": (D, D),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
            "input_layernorm": (D,),
            "post_attention_layernorm": (D,),
        }
        tensors |= {f"{prefix}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    byte_tokenizer().backend.save(str(directory / "tokenizer.json"))
    return directory


def call(monkeypatch, main: Callable[[], None], *flags) -> int:
    """The exit status of a command with these flags; an analysis reads the planted model where they name none."""
    if main.__module__.startswith("analyze.") and "--ckpt" not in flags:
        flags = (*flags, "--ckpt", "planted")
    monkeypatch.setattr(sys, "argv", ["analyze", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        run(main)
    return int(end.value.code or 0)


def words(text: str) -> str:
    """Printed text whatever its line breaks, which long paths move."""
    return " ".join(text.split())


def tree(directory: Path) -> dict[str, bytes]:
    """Everything below a directory, to see whether it changed."""
    return {
        str(p.relative_to(directory)): p.read_bytes() if p.is_file() else b""
        for p in directory.rglob("*")
    }
