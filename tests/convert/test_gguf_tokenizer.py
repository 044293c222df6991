"""The tokenizer inside a GGUF file cuts texts as the model's own tokenizer.json does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers

import sysout_jax as so
from sysout_jax.checkpoints.formats.gguf_tokenizer import read_gguf_tokenizer

TEXTS = [
    "Summer is warm. Winter is cold.\n",
    "  two  spaces, tabs\tand 1,234 numbers; it's naïve — über straße 東京 🙂\r\n\r\nend",
    "def f(x):\n    return x**2  # comment\n",
    "",
    " ",
    "<s> spelled out </s>",
]


def test_byte_level_equals_the_gpt2_tokenizer(shared_data, tmp_path):
    file = shared_data / "gpt2-tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": np.array([3 if t == "<|endoftext|>" else 1 for t in tokens]),
        "tokenizer.ggml.bos_token_id": 50256,
    }
    ours, theirs = read_gguf_tokenizer(tmp_path, fields), tokenizers.Tokenizer.from_file(str(file))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.bos_id == 50256


def test_sentencepiece_equals_the_llama2_tokenizer(shared_data, tmp_path):
    file = shared_data / "llama2-tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merged = ["".join(m if isinstance(m, list) else m.split(" ")) for m in model["merges"]]
    # the earlier a piece is merged, the better its score; runs of spaces come last
    score = {piece: -float(rank) for rank, piece in reversed(list(enumerate(merged)))}
    kinds = [
        3 if i in (1, 2) else 2 if i == 0 else 6 if 3 <= i < 259 else 1 for i in range(len(tokens))
    ]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([score.get(token, 0.0) for token in tokens]),
        "tokenizer.ggml.token_type": np.array(kinds),
    }
    ours, theirs = read_gguf_tokenizer(tmp_path, fields), tokenizers.Tokenizer.from_file(str(file))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.bos_id == 1


GOOD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"],
}


def test_digits_stand_alone_where_the_model_says_so(tmp_path):
    fields = GOOD | {
        "tokenizer.ggml.tokens": ["1", "2", "12"],
        "tokenizer.ggml.merges": ["1 2"],
    }
    assert read_gguf_tokenizer(tmp_path, fields).encode("12") == [0, 1]
    tekken = read_gguf_tokenizer(tmp_path, fields | {"tokenizer.ggml.pre": "tekken"})
    assert tekken.encode("12") == [0, 1]
    together = read_gguf_tokenizer(tmp_path, fields | {"tokenizer.ggml.pre": "gpt-2"})
    assert together.encode("12") == [2]


@pytest.mark.parametrize(
    ("pre", "ids"),
    [("gpt-2", [1, 0, 4]), ("gpt-4o", [1, 0, 4]), ("llama-bpe", [5, 4]), ("tekken", [1, 0, 4])],
)
def test_how_words_are_cut(pre, ids, tmp_path):
    """`bAb` is a token without merges, which some take whole where they do not cut before its capital; ` ab` is always one."""
    fields = GOOD | {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["Ab", "b", "A", "Ġ", "Ġb", "bAb"],
        "tokenizer.ggml.merges": ["A b", "Ġ b"],
    }
    assert read_gguf_tokenizer(tmp_path, fields).encode("bAb b") == ids


@pytest.mark.parametrize(
    ("keys", "adds"),
    [
        ({}, False),
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"add_bos_token": True}, True),
        ({"model": "llama", "scores": np.zeros(3)}, True),
    ],
)
def test_bos_is_added_where_the_file_or_its_kind_says_so(keys, adds, tmp_path):
    fields = GOOD | {"tokenizer.ggml.bos_token_id": 1}
    fields |= {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    tokenizer = read_gguf_tokenizer(tmp_path, fields)
    assert tokenizer.adds_bos is adds and tokenizer.bos_id == 1
    assert 1 not in tokenizer.encode("a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "rwkv"}, "tokenizer rwkv is unknown"),
        ({"model": 7}, "tokenizer 7 is unknown"),
        ({"pre": "of \x1b[31mMars"}, "cuts a text .*x1b.* is unknown"),
        ({"pre": 3}, "tokenizer.ggml.pre is no word"),
        ({"tokens": np.zeros(3)}, "tokens is no list of strings"),
        ({"tokens": ["a", "a"]}, "names a token twice"),
        ({"tokens": []}, "vocabulary is empty"),
        ({"merges": ["a b c"]}, "something other than pairs"),
        ({"merges": ["a z"]}, "cannot be built"),
        ({"token_type": ["x"]}, "token_type is not one number per token"),
        ({"token_type": np.zeros(2)}, "token_type is not one number per token"),
        ({"model": "llama", "scores": ["a", "b", "c"]}, "scores is not one number per token"),
        ({"model": "llama"}, "scores is not one number per token"),
        ({"model": "llama", "scores": np.zeros(3), "add_space_prefix": 1}, "no true or false"),
    ],
)
def test_what_is_no_tokenizer_says_which_file_to_bring(change, says, tmp_path):
    fields = GOOD | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(so.InputError, match=says) as caught:
        read_gguf_tokenizer(tmp_path / "m.gguf", fields)
    assert str(caught.value).endswith("put the model's tokenizer.json beside the file")
    assert "\x1b" not in str(caught.value)


def test_no_tokenizer_inside(tmp_path):
    assert read_gguf_tokenizer(tmp_path, {}) is None
