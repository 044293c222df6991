"""llama2.c's `tokenizer.bin` (sentencepiece's pieces and scores) as a BPE of the `tokenizers` library."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from sysout_jax.containers.sentencepiece import SPACE, implied_merges
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.printable import printable
from sysout_jax.storage.files import check_readable

FILE = "tokenizer.bin"
AGAIN = "copy or download it again"
MOST_BYTES = 1 << 23  # a vocabulary of 128,000 takes 2 MiB
MOST_PIECE = 128  # bytes; sentencepiece's own limit is 16 characters
_SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2 of every sentencepiece LLaMA
_FIRST_BYTE = len(_SPECIAL)
_BYTES = [f"<0x{b:02X}>" for b in range(256)]


def read_tokenizer_bin(path: Path, vocab_size: int, bos_id: int) -> Tokenizer:
    """The tokenizer, with the merges that sentencepiece's scores imply.

    Raises InputError when the file is damaged, has not `vocab_size` pieces, or was not made from a sentencepiece vocabulary
    with byte fallback.
    """
    pieces = _read_pieces(path)
    if len(pieces) != vocab_size:
        raise InputError(
            f"{path}: holds {len(pieces)} pieces, the model's vocabulary {vocab_size}; put the model's own {FILE} "
            "or tokenizer.json beside it"
        )
    names = [piece.replace(" ", SPACE) for piece, _ in pieces]
    _name_bytes(path, names)
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) != len(names):
        raise InputError(f"{path}: some pieces occur twice; put a tokenizer.json beside the model")
    scores = {name: score for name, (_, score) in zip(names, pieces, strict=True)}
    merges = implied_merges(names[_FIRST_BYTE + len(_BYTES) :], vocab, scores)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token=_SPECIAL[0], fuse_unk=True, byte_fallback=True)
    )
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in _SPECIAL]
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, bos_id)


def _read_pieces(path: Path) -> list[tuple[str, float]]:
    """The file: length of the longest piece, then for each piece its score, its length in bytes, its bytes."""
    data = check_readable(path, f"expected a {FILE}, {AGAIN}", MOST_BYTES).read_bytes()
    pieces, at = [], 4
    try:
        struct.unpack_from("<I", data)
        while at < len(data):
            score, length = struct.unpack_from("<fI", data, at)
            at += 8
            if not 1 <= length <= MOST_PIECE:
                raise ValueError(f"a piece of {length:,} bytes, expected 1 to {MOST_PIECE}")
            if not math.isfinite(score):
                raise ValueError(f"a piece with score {score}")
            if at + length > len(data):
                raise ValueError("it ends within a piece")
            pieces.append((data[at : at + length].decode(), score))
            at += length
    except (struct.error, ValueError) as error:
        raise InputError(f"{path}: not a whole {FILE} ({printable(str(error))}); {AGAIN}") from None
    return pieces


def _name_bytes(path: Path, names: list[str]) -> None:
    """Give specials and byte pieces their usual names; older files spell bytes as the characters U+0000 to U+00FF."""
    head = names[: _FIRST_BYTE + len(_BYTES)]
    characters = [chr(b).replace(" ", SPACE) for b in range(256)]
    if [head[0], *(name.strip() for name in head[1:3])] != list(_SPECIAL) or head[3:] not in (
        _BYTES,
        characters,
    ):
        raise InputError(
            f"{path}: its pieces are not a sentencepiece LLaMA's (<unk>, <s>, </s>, 256 bytes, …); "
            "put the model's tokenizer.json beside it"
        )
    names[: len(head)] = [*_SPECIAL, *_BYTES]
