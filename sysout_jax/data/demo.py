"""What the analyses read when nothing is given: a short text that comes with the package, and a tokenizer over its bytes."""

from __future__ import annotations

from importlib import resources

from sysout_jax.data import tokenizers

BOS = "<s>"


def demo_text() -> str:
    """Plain English prose in short paragraphs, about 14 thousand characters."""
    return resources.files("sysout_jax.data").joinpath("demo.txt").read_text(encoding="utf-8")


def byte_tokenizer() -> tokenizers.Tokenizer:
    """One token per UTF-8 byte, and BOS: 257 tokens, nothing to download."""
    return tokenizers.byte_tokenizer(BOS)
