"""The tokenizer of a Hugging Face directory, from whichever files it has, and what its tokenizer_config.json says of BOS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checkpoints.formats.gguf_tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED
from sysout_jax.checkpoints.formats.gguf_tokenizer import read_gguf_tokenizer as built
from sysout_jax.checks import shown
from sysout_jax.containers.sentencepiece import SPACE, read_pieces
from sysout_jax.data.tokenizers import FILE, MOST_BYTES, Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.storage.files import check_readable
from sysout_jax.storage.serialise import read_json_object

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
VOCAB, MERGES, PIECES = "vocab.json", "merges.txt", "tokenizer.model"
AGAIN, BRING = "download it again", f"put the model's {FILE} beside it"

#: `tokenizer_class`, or the `model_type` of a directory that names none → how it cuts a text (`PRE_TOKENIZERS`).
CUTS = {
    **dict.fromkeys(("GPT2Tokenizer", "CodeGenTokenizer", "gpt2", "opt", "phi"), "gpt-2"),
    **dict.fromkeys(("Qwen2Tokenizer", "qwen2", "qwen3"), "qwen2"),
}


def read_hf_tokenizer(
    directory: Path, bos_id: int | None = None, model_type: Any = None
) -> Tokenizer | None:
    """From tokenizer.json, else vocab.json and merges.txt, else tokenizer.model; None where there is none of them.

    `bos_id` is what config.json says; the BOS that tokenizer_config.json names comes first, and so does whether it is added. Raises
    InputError for files that cannot be read, and for tokenizers of which only tokenizer.json says all.
    """
    config = _read(directory, CONFIG)
    adds = config.get("add_bos_token")
    if not isinstance(adds, bool | None):
        raise InputError(
            f"{directory / CONFIG}: add_bos_token is {shown(adds)}; expected true or false"
        )
    bos = _text(config.get("bos_token"))
    if _has(directory, FILE):
        tokenizer = Tokenizer.from_file(directory / FILE, bos_id)
        named = tokenizer.backend.token_to_id(bos) if bos is not None else None
        tokenizer.bos_id = bos_id if named is None else named
        tokenizer.told_adds_bos = adds
        return tokenizer
    if _has(directory, VOCAB) and _has(directory, MERGES):
        path, fields = directory / VOCAB, _byte_level(directory, config, model_type)
    elif _has(directory, PIECES):
        path, fields = directory / PIECES, _sentencepiece(directory, config)
    else:
        return None
    tokens = fields["tokens"]
    named = tokens.index(bos) if bos in tokens else bos_id
    fields |= {"bos_token_id": named} if named is not None else {}
    fields |= {"add_bos_token": adds} if adds is not None else {}
    return built(path, {f"tokenizer.ggml.{name}": value for name, value in fields.items()})


def _has(directory: Path, name: str) -> bool:
    # a dangling link is a damaged tokenizer, not a model without one
    return os.path.lexists(directory / name)


def _read(directory: Path, name: str) -> dict[str, Any]:
    return read_json_object(directory / name, AGAIN) if _has(directory, name) else {}


def _text(token: Any) -> str | None:
    """The text of a special token, which is told as a text or as an object."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


def _byte_level(directory: Path, config: Mapping[str, Any], model_type: Any) -> dict[str, Any]:
    """As the fields of a GGUF file, which tell the same."""
    kind = str(config.get("tokenizer_class") or model_type).removesuffix("Fast")
    if kind not in CUTS or config.get("add_prefix_space"):
        raise InputError(
            f"{directory / VOCAB}: how the tokenizer {shown(kind)} cuts a text is not known here; {BRING}"
        )
    vocab = read_json_object(directory / VOCAB, AGAIN)
    check_readable(directory / MERGES, AGAIN, MOST_BYTES)
    try:
        lines = (directory / MERGES).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{directory / MERGES}: not UTF-8 text; {AGAIN}") from None
    merges = [line.rstrip("\r") for line in lines if line.strip() and line[:9] != "#version:"]
    told = {"model": "gpt2", "pre": CUTS[kind], "merges": merges}
    return told | _vocabulary(directory, config, vocab, {})


def _sentencepiece(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    pieces = read_pieces(directory / PIECES)
    # those that the user defined are found in the text as it is, before its spaces are replaced
    vocab = {
        piece.replace(SPACE, " ") if kind == USER_DEFINED else piece: i
        for i, (piece, kind) in enumerate(zip(pieces.texts, pieces.types, strict=True))
    }
    if len(vocab) < len(pieces.texts):
        raise InputError(f"{directory / PIECES}: names a piece twice; {BRING}")
    types = dict(enumerate(pieces.types))
    told = _vocabulary(directory, config, vocab, types)
    scores = np.zeros(len(told["tokens"]), np.float32)
    scores[: len(pieces.scores)] = pieces.scores
    prefix = config.get("add_prefix_space")
    space = pieces.space_first if prefix is None else bool(prefix)
    return {"model": "llama", "scores": scores, "add_space_prefix": space, **told}


def _vocabulary(
    directory: Path, config: Mapping[str, Any], vocab: dict[str, Any], types: dict[int, int]
) -> dict[str, Any]:
    """`tokens` by id and their types, with those that were added later; rows without a token are unused."""
    special = set()
    for told in (config, _read(directory, SPECIAL)):
        more = told.get("additional_special_tokens")
        named = [told.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")]
        special |= {_text(token) for token in [*named, *(more if isinstance(more, list) else [])]}
    ids, added = dict(vocab), _read(directory, ADDED)
    decoder = config.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        text = _text(token)
        if text is not None and number.isascii() and number.isdigit():
            added[text] = int(number[:12])
            special |= {text} if isinstance(token, dict) and token.get("special") else set()
    ids |= added
    numbers = list(ids.values())
    most = 2 * len(ids) + 1024
    if not all(type(i) is int and 0 <= i < most for i in numbers) or len(set(numbers)) < len(ids):
        raise InputError(
            f"{directory}: its vocabulary gives two tokens one id, or ids of another kind; expected whole numbers below {most:,}, {AGAIN}"
        )
    size = max(numbers, default=-1) + 1
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], np.full(size, UNUSED)
    for text, i in ids.items():
        tokens[i] = text
        kinds[i] = types.get(i, NORMAL)
        if text in special and kinds[i] != USER_DEFINED:
            kinds[i] = CONTROL
        elif text in added and kinds[i] == NORMAL:
            kinds[i] = USER_DEFINED
    return {"tokens": tokens, "token_type": kinds}
