"""The tokenizer inside a GGUF file, as one of the `tokenizers` library: byte-level BPE (`gpt2`) and sentencepiece (`llama`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sysout_jax.containers.sentencepiece import SPACE, implied_merges
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.printable import printable_name

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # of tokenizer.ggml.token_type

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r"[\p{P}\$\+<=>\^~\|`]+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (  # %s: what may follow a word, and how many digits stand together
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+%s|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*%s|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
#: `tokenizer.ggml.pre` → the expressions that cut a text before BPE, one after the other, as the models' own tokenizers do.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
    **dict.fromkeys((*LLAMA3, "dbrx", "smaug-bpe"), (_WORDS % r"\p{N}{1,3}",)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), (_WORDS % r"\p{N}",)),
    "gpt-4o": (_CASED % (_SHORT, _SHORT, r"\p{N}{1,3}"),),
    "tekken": (_CASED % ("", "", r"\p{N}"),),
    "falcon": (_SYMBOLS, _GPT2, r"[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}


#: Those of byte-level BPE that put BOS first where the file does not say.
ADDING_BOS = (*LLAMA3, "tekken")
#: Those that take a piece of text whole where it is a token, whatever the merges say.
WHOLE_FIRST = (*LLAMA3, "tekken")


def read_gguf_tokenizer(path: Path, fields: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a GGUF file's `fields` describe, None where they name none.

    Raises InputError, with the file to bring, for kinds that are not known and for fields of the wrong kind.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind is None or kind == "none":
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if not isinstance(kind, str) or kind not in builders:
        raise _refused(
            path, f"tokenizer {printable_name(str(kind))} is unknown, expected gpt2 or llama"
        )
    told = _Told(path, fields)
    try:
        backend = builders[kind](told)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise _refused(
            path, f"its tokenizer cannot be built ({printable_name(str(error))})"
        ) from None
    for index in told.special(CONTROL):
        backend.add_special_tokens([AddedToken(told.tokens[index], special=True, normalized=False)])
    own = [AddedToken(told.tokens[i], normalized=False) for i in told.special(USER_DEFINED)]
    backend.add_tokens(own)
    bos_id = told.bos_id
    if bos_id is not None and told.adds_bos:
        bos = told.tokens[bos_id]
        backend.post_processor = processors.TemplateProcessing(
            [bos, "$A"], special_tokens=[(bos, bos_id)]
        )
    return Tokenizer(backend, bos_id)


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: {reason}; put the model's tokenizer.json beside the file")


class _Told:
    """The fields of a tokenizer, each of the kind that it must be."""

    def __init__(self, path: Path, fields: Mapping[str, Any]):
        self.path, self._fields = path, fields
        self.tokens = self.texts("tokens")
        if len(set(self.tokens)) != len(self.tokens) or not self.tokens:
            raise _refused(path, "its vocabulary is empty or names a token twice")
        types = fields.get("tokenizer.ggml.token_type")
        self._types = (
            np.ones(len(self.tokens), int) if types is None else self.numbers("token_type")
        )

    def texts(self, name: str) -> list[str]:
        value = self._fields.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, list):
            raise _refused(self.path, f"tokenizer.ggml.{name} is no list of strings")
        return value

    def numbers(self, name: str) -> np.ndarray:
        """One number per token."""
        value = self._fields.get(f"tokenizer.ggml.{name}")
        if not isinstance(value, np.ndarray) or len(value) != len(self.tokens):
            raise _refused(self.path, f"tokenizer.ggml.{name} is not one number per token")
        return value

    def special(self, kind: int) -> list[int]:
        return [int(i) for i in np.flatnonzero(self._types == kind)]

    def switch(self, name: str, default: bool) -> bool:
        value = self._fields.get(f"tokenizer.ggml.{name}", default)
        if type(value) is not bool:
            raise _refused(self.path, f"tokenizer.ggml.{name} is no true or false")
        return value

    def word(self, name: str, default: str) -> str:
        value = self._fields.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, str):
            raise _refused(self.path, f"tokenizer.ggml.{name} is no word")
        return value

    def _id(self, name: str, default: int | None) -> int | None:
        value = self._fields.get(f"tokenizer.ggml.{name}_token_id", default)
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    @property
    def bos_id(self) -> int | None:
        return self._id("bos", 1 if self._fields["tokenizer.ggml.model"] == "llama" else None)

    @property
    def adds_bos(self) -> bool:
        """llama.cpp's defaults where the file does not say."""
        spm = self._fields["tokenizer.ggml.model"] == "llama"
        return self.switch("add_bos_token", spm or self.word("pre", "default") in ADDING_BOS)

    @property
    def unknown(self) -> str | None:
        index = self._id("unknown", 0)
        return None if index is None else self.tokens[index]


def _byte_level(told: _Told) -> tokenizers.Tokenizer:
    name = told.word("pre", "default")
    if name not in PRE_TOKENIZERS:
        raise _refused(
            told.path, f"how its tokenizer cuts a text ({printable_name(name)}) is unknown"
        )
    merges: list[tuple[str, str]] = []
    for merge in told.texts("merges"):
        if merge.count(" ") != 1:
            raise _refused(told.path, "tokenizer.ggml.merges holds something other than pairs")
        first, second = merge.split(" ")
        merges.append((first, second))
    vocab = {token: i for i, token in enumerate(told.tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=name in WHOLE_FIRST))
    cuts = [
        pre_tokenizers.Split(Regex(expression), "isolated") for expression in PRE_TOKENIZERS[name]
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(told: _Told) -> tokenizers.Tokenizer:
    scores = dict(zip(told.tokens, told.numbers("scores").tolist(), strict=True))
    vocab = {token: i for i, token in enumerate(told.tokens)}
    special = {*told.special(CONTROL), *told.special(BYTE)}
    pieces = [token for i, token in enumerate(told.tokens) if i not in special]
    unknown = told.unknown
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab,
            implied_merges(pieces, vocab, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    first = [normalizers.Prepend(SPACE)] if told.switch("add_space_prefix", True) else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Strip(" ", 1, 0)] if first else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *undo]
    )
    return backend
