"""Token classes: the same for sentencepiece and byte-level vocabularies, with lists that can be replaced."""

import json

import numpy as np
import pytest
import tokenizers

import sysout_jax as so
from sysout_jax.data.tokenizers import Tokenizer, byte_tokenizer
from sysout_jax.outliers.tokens import TokenClasses

# text, and the class that a reader would give each of its tokens
STORY = [
    ("Once", "initial"), (" upon", "other"), (" a", "weak semantic"), (" time", "other"), (",", "weak semantic"),
    (" the", "weak semantic"), (" cat", "other"), (" sat", "other"), (".", "strong delimiter"),
    ("\n", "strong delimiter"), ("The", "weak semantic"), (" end", "other"), ("!!", "strong delimiter"), (" ", "weak semantic"),
]  # fmt: skip


def sentencepiece(pieces: list[str]) -> Tokenizer:
    """A vocabulary of whole pieces with ▁ for a space and byte tokens for line ends."""
    stored = [p.replace(" ", "▁").replace("\n", "<0x0A>") for p in pieces]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0} | {p: i + 1 for i, p in enumerate(stored)}, "<s>")
    )
    backend.decoder = tokenizers.decoders.ByteFallback()
    return Tokenizer(backend, bos_id=0)


def byte_level(pieces: list[str]) -> Tokenizer:
    stored = [p.replace(" ", "Ġ").replace("\n", "Ċ") for p in pieces]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0} | {p: i + 1 for i, p in enumerate(stored)}, "<s>")
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(backend, bos_id=0)


@pytest.mark.parametrize("build", [sentencepiece, byte_level])
def test_a_story(build):
    classes, pieces = TokenClasses(), [text for text, _ in STORY]
    tokenizer = build(pieces)
    assert [tokenizer.text(i + 1) for i in range(len(pieces))] == pieces
    ids = np.arange(1, len(pieces) + 1)
    found = classes.classify(ids[None], tokenizer)[0]
    assert [classes.names[i] for i in found] == [kind for _, kind in STORY]
    # behind BOS the first word is a word like any other, and BOS is initial wherever it stands
    again = classes.classify(np.concatenate([[0], ids, [0]])[None], tokenizer)[0]
    assert [classes.names[i] for i in again] == [
        "initial", "other", *(kind for _, kind in STORY[1:]), "initial"
    ]  # fmt: skip


def test_letters_of_a_word_are_no_words():
    tokenizer, classes = byte_tokenizer(), TokenClasses()
    text = "x a cat, a.\na"
    found = classes.classify(np.array([tokenizer.encode(text)]), tokenizer)[0]
    marks = {"initial": "I", "strong delimiter": "D", "weak semantic": "w", "other": "o"}
    assert "".join(marks[classes.names[i]] for i in found) == "IwwwooowwwDDw"


def test_real_vocabularies_agree(shared_data):
    """Words of the same text get the same class in LLaMA's and GPT-2's vocabulary, token by token where they cut alike."""
    classes, text = TokenClasses(), "Summer is warm. Winter is cold.\n"
    kinds = {}
    for name in ("llama2-tokenizer", "gpt2-tokenizer"):
        tokenizer = Tokenizer.from_file(shared_data / name / "tokenizer.json")
        ids = np.array([tokenizer.encode(text)])
        found = classes.classify(ids, tokenizer)[0]
        kinds[name] = [
            (tokenizer.text(i).strip(" "), classes.names[k])
            for i, k in zip(ids[0], found, strict=True)
        ]
    assert kinds["llama2-tokenizer"] == kinds["gpt2-tokenizer"]
    assert kinds["gpt2-tokenizer"] == [
        ("Summer", "initial"), ("is", "weak semantic"), ("warm", "other"), (".", "strong delimiter"),
        ("Winter", "other"), ("is", "weak semantic"), ("cold", "other"), (".", "strong delimiter"), ("\n", "strong delimiter"),
    ]  # fmt: skip


def test_lists_can_be_replaced(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"stop": [".", "\n"], "vowel": ["a", "e"]}))
    classes = TokenClasses.from_file(path)
    assert classes.names == ("initial", "stop", "vowel", "other")
    tokenizer = byte_tokenizer()
    found = classes.classify(np.array([tokenizer.encode("x. a, e\n")]), tokenizer)[0]
    assert found.tolist() == [0, 1, 3, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file"),
        ("{", "not readable JSON"),
        ("[]", "expected a JSON object"),
        ('{"a": "b"}', "expected a JSON object"),
        ('{"a": [1]}', "expected a JSON object"),
        ('{"a": [""]}', "expected a JSON object"),
        ('{"other": ["x"]}', "reserved"),
    ],
)
def test_bad_lists(tmp_path, content, message):
    path = tmp_path / "classes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(so.InputError, match=message):
        TokenClasses.from_file(path)
