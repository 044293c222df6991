"""What the analyses read when nothing is given: a short text that comes with the package, and a tokenizer over its bytes."""

from __future__ import annotations

from importlib import resources

import tokenizers

from sysout_jax.data.tokenizers import Tokenizer

BOS = "<s>"


def demo_text() -> str:
    """Plain English prose in short paragraphs, about 14 thousand characters."""
    return resources.files("sysout_jax.data").joinpath("demo.txt").read_text(encoding="utf-8")


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte, and BOS: 257 tokens, nothing to download."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([BOS])
    return Tokenizer(backend, bos_id=backend.token_to_id(BOS))
