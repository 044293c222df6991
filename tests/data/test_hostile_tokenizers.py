"""Tokenizers that load and cannot encode, panic, or grow without bound: one line at the door, and nothing else on the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from sysout_jax.data.encoding import Encoder
from sysout_jax.data.text import prompt_sequence, text_windows
from sysout_jax.data.tokenizer_guard import PROBE
from sysout_jax.data.tokenizers import Tokenizer, byte_tokenizer
from sysout_jax.errors import InputError
from tests.limits import within

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
PLAIN = dict.fromkeys(
    ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
)


def write(path: Path, model: dict = BPE, **parts) -> Path:
    path.write_text(
        json.dumps({"version": "1.0", "added_tokens": [], **PLAIN, "model": model, **parts})
    )
    return path


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*normalizers: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(normalizers)}


TENFOLD = replace({"String": "a"}, "a" * 10)
BAD = {
    "words without unknown": {
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    },
    "pieces without unknown": {
        "model": {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
    },
    "unigram without unknown": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
    "empty unigram": {"model": {"type": "Unigram", "unk_id": None, "vocab": []}},
    "empty bpe": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "a long prefix": {"model": BPE | {"continuing_subword_prefix": "#" * 10}},
    "a damaged map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a map of nothing": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "tenfold eight times": {"normalizer": sequence(*[TENFOLD] * 8)},
    "tenfold within": {"normalizer": sequence(sequence(*[TENFOLD] * 4), sequence(*[TENFOLD] * 4))},
    "doubling": {"normalizer": sequence(*[replace({"Regex": ""}, "a")] * 40)},
    "at once": {"normalizer": replace({"String": "a"}, "b" * 10**6)},
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_encode_is_refused_at_the_door(tmp_path, capfd, case):
    path = write(tmp_path / "tokenizer.json", **BAD[case])
    with within(), pytest.raises(InputError) as caught:
        Tokenizer.from_file(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 1500
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["é", "a" * 200])
def test_texts_that_a_tokenizer_fails_on(text, tmp_path, capfd):
    """It encodes what it is tried on when it is opened."""
    vocab = {letter: i for i, letter in enumerate(sorted(set(PROBE)))}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    letters = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    path = write(tmp_path / "tokenizer.json", model, pre_tokenizer=letters)
    tokenizer = Tokenizer.from_file(path)
    encoder = Encoder(tokenizer, "letters", None, "uint16")
    for encode in (tokenizer.encode, encoder.encode):
        if text == "é":
            with pytest.raises(InputError, match="cannot encode this text"):
                encode(text)
        else:
            assert list(encode(text)) == [vocab["a"]] * 200
    assert capfd.readouterr() == ("", "")


def test_what_is_common_is_not_refused(tmp_path, shared_data):
    spaces = sequence(
        {"type": "NFKC"},
        {"type": "Lowercase"},
        replace({"String": "``"}, '"'),
        replace({"Regex": " {2,}"}, " "),
        {"type": "Prepend", "prepend": "▁"},
        replace({"String": " "}, "▁"),
    )
    assert Tokenizer.from_file(write(tmp_path / "x.json", normalizer=spaces)).encode("ab") == [2]
    for name in ("gpt2-tokenizer", "llama2-tokenizer", "aidreams-260k"):
        assert Tokenizer.from_file(shared_data / name / "tokenizer.json").encode("a b")


def test_a_directory_whose_name_is_no_text(tmp_path, shared_data):
    odd = tmp_path / "\udcff"
    odd.mkdir()
    shutil.copy(shared_data / "gpt2-tokenizer" / "tokenizer.json", odd)
    assert Tokenizer.from_file(odd / "tokenizer.json").encode("a b")
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.from_file(odd / "other.json")


def test_padding_and_truncation_are_off_before_anything_is_encoded(tmp_path):
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    with within():
        tokenizer = Tokenizer.from_file(write(tmp_path / "x.json", padding=padding))
        assert tokenizer.encode("ab") == [2]


def test_a_text_that_cannot_be_encoded(tmp_path, capfd):
    """An expression that never ends on some texts gives up; that is an error of the tokenizer's."""
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = Tokenizer.from_file(write(tmp_path / "x.json", pre_tokenizer=split))
    with within(), pytest.raises(InputError, match="the tokenizer cannot encode") as caught:
        tokenizer.encode("a" * 40 + "b")
    assert str(caught.value).isprintable()
    capfd.readouterr()


def test_ids_that_no_array_of_tokens_holds(tmp_path):
    vocab = {"a": 2**32 - 1, "b": 1, "ab": 2}
    path = write(tmp_path / "x.json", BPE | {"vocab": vocab})
    with pytest.raises(InputError, match="a token has the id 4,294,967,295; expected one below"):
        Tokenizer.from_file(path)
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(path)))  # as others may make it
    for call in (
        lambda: tokenizer.encode("a"),
        lambda: prompt_sequence(tokenizer, "a", False),
        lambda: text_windows(tokenizer, "a", 1, 1, False),
        lambda: tokenizer.vocab_size,
    ):
        with pytest.raises(InputError, match="the id 4294967295; expected ids below"):
            call()


def test_pieces_that_look_like_bytes(tmp_path):
    vocab = {"<0xZZ>": 0, "<0x-1>": 1, "<0x41>": 2, "<0x 1>": 3, "b": 4}
    tokenizer = Tokenizer.from_file(
        write(tmp_path / "x.json", {"type": "BPE", "vocab": vocab, "merges": []})
    )
    assert [tokenizer.text(i) for i in range(5)] == ["<0xZZ>", "<0x-1>", "A", "<0x 1>", "b"]


@pytest.mark.parametrize("text", ["\udcff", "a\udfff", None, 3, b"x", ["a"]])
def test_what_is_no_text(text):
    with pytest.raises(InputError):
        byte_tokenizer().encode(text)
