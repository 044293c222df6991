"""Tokenizers beside the weights: vocab.json and merges.txt, sentencepiece's tokenizer.model, and BOS as tokenizer_config.json says."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import tokenizers
from tokenizers.processors import TemplateProcessing

import sysout_jax as so
from analyze.source import Source, prepare
from sysout_jax.checkpoints.formats.hf_tokenizer import read_hf_tokenizer
from tests.analyze.command import write_model
from tests.convert.command import run_here
from tests.convert.test_gguf_tokenizer import TEXTS


@pytest.fixture
def gpt2(shared_data, tmp_path):
    """GPT-2's tokenizer.json, and a directory with its vocab.json and merges.txt."""
    file = shared_data / "gpt2-tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return file, tmp_path


def configure(directory, **fields) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))


def test_byte_level_equals_the_gpt2_tokenizer(gpt2):
    file, directory = gpt2
    ours = read_hf_tokenizer(directory, 50256, "gpt2")
    theirs = tokenizers.Tokenizer.from_file(str(file))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.bos_id == 50256 and not ours.adds_bos


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_byte_level_equals_transformers(kind, gpt2):
    transformers = pytest.importorskip("transformers")
    _, directory = gpt2
    added = {"50257": {"content": "<|im_start|>", "special": True}}
    configure(
        directory, tokenizer_class=kind, bos_token="<|endoftext|>", added_tokens_decoder=added
    )
    theirs = getattr(transformers, kind).from_pretrained(directory)
    ours = read_hf_tokenizer(directory)
    for text in [*TEXTS, "<|im_start|>user 1234 e\u0301<|endoftext|>"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def message(*fields: tuple[int, object]) -> bytes:
    """Of a protocol buffer; all numbers are small."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += bytes([number << 3, value])
        elif isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            raw = value if isinstance(value, bytes) else str(value).encode()
            length = bytes([len(raw) & 127 | 128, len(raw) >> 7])
            out += bytes([number << 3 | 2]) + length + raw
    return out


def sentencepiece(pieces, kind: int = 2, normaliser: bytes = message((4, 0))) -> bytes:
    held = [(1, message((1, text), (2, score), (3, type_))) for text, score, type_ in pieces]
    return message(*held, (2, message((3, kind))), (3, normaliser))


def test_sentencepiece_equals_the_llama2_tokenizer(shared_data, tmp_path):
    file = shared_data / "llama2-tokenizer" / "tokenizer.json"
    model = json.loads(file.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merged = ["".join(m if isinstance(m, list) else m.split(" ")) for m in model["merges"]]
    score = {piece: -float(rank) for rank, piece in reversed(list(enumerate(merged)))}
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    pieces = [(t, score.get(t, 0.0), kind) for t, kind in zip(tokens, kinds, strict=True)]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces))
    ours, theirs = read_hf_tokenizer(tmp_path, 1), tokenizers.Tokenizer.from_file(str(file))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.bos_id == 1 and ours.adds_bos  # as sentencepiece models do unless told otherwise
    configure(tmp_path, add_bos_token=False, bos_token={"content": "</s>"})
    ours = read_hf_tokenizer(tmp_path, 1)
    assert ours.bos_id == 2 and not ours.adds_bos
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 32000}))
    assert read_hf_tokenizer(tmp_path).encode("a<pad>")[-1] == 32000


def test_pieces_that_the_user_defined_are_found_in_the_text_as_it_is(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("a", -1.0, 1), ("▁", -2.0, 1), ("▁▁", 0.0, 4)]
    no_prefix = message((3, 0), (4, 0))
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces, normaliser=no_prefix))
    assert read_hf_tokenizer(tmp_path).encode("a  a a") == [1, 3, 1, 2, 1]


@pytest.mark.parametrize(
    ("file_adds", "config", "bos_id", "adds"),
    [
        (False, {}, 0, False),
        (True, {}, 0, True),
        (True, {"add_bos_token": False}, 0, False),
        (False, {"add_bos_token": True}, 0, True),
        (False, {"bos_token": "b", "add_bos_token": True}, 1, True),
        (False, {"bos_token": {"content": "b"}}, 1, False),
        (False, {"bos_token": "unheard of"}, 0, False),
        (False, {"bos_token": None}, 0, False),
    ],
)
def test_bos_is_what_the_tokenizer_says(file_adds, config, bos_id, adds, tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2}, []))
    if file_adds:
        backend.post_processor = TemplateProcessing(["a", "$A"], special_tokens=[("a", 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, **config)
    found = read_hf_tokenizer(tmp_path, 0)
    assert (found.bos_id, found.adds_bos) == (bos_id, adds)
    assert found.encode("c") == [2]


def test_a_model_with_its_vocabulary_converts_and_is_read_as_it_says(gpt2, tmp_path, monkeypatch):
    _, files = gpt2
    model = write_model(tmp_path / "model", vocab_size=50257)
    (model / "tokenizer.json").unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(files / name, model / name)
    configure(model, tokenizer_class="GPT2Tokenizer", bos_token="<|endoftext|>", add_bos_token=True)
    for form in ("hf", "orbax"):
        out = tmp_path / form
        assert run_here(monkeypatch, "--src", model, "--out", out, "--format", form) == 0
        prepared = prepare(Source(ckpt=str(out), prompt=TEXTS[0]))
        assert prepared.tokens.tolist() == [so.load(model).tokenizer.encode(TEXTS[0])]
        (note,) = prepared.notes
        assert note == (
            "Read without BOS; the model's own tokenizer starts a text with it (<|endoftext|>, id 50256)."
        )


VOCAB = {"a": 0, "b": 1, "ab": 2}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer_config.json": {"tokenizer_class": "BloomTokenizer"}}, "'BloomTokenizer' cuts"),
        ({"tokenizer_config.json": {"add_prefix_space": True}}, "cuts a text is not known"),
        ({"tokenizer_config.json": {"add_bos_token": "yes"}}, "add_bos_token is 'yes'; expected"),
        ({"tokenizer_config.json": b"{"}, "tokenizer_config.json"),
        ({"vocab.json": {"a": 0, "b": 0}}, "gives two tokens one id"),
        ({"vocab.json": {"a": 0, "b": 10**9}}, "expected whole numbers below"),
        ({"vocab.json": {"a": 0, "b": "1"}}, "expected whole numbers below"),
        ({"vocab.json": {}}, "vocabulary is empty"),
        ({"merges.txt": b"\xff"}, "merges.txt: not UTF-8"),
        ({"merges.txt": b"a b c\n"}, "something other than pairs"),
        ({"merges.txt": b"a z\n"}, "cannot be built"),
    ],
)
def test_damaged_vocabularies_are_one_line(change, says, tmp_path):
    held = {"vocab.json": VOCAB, "merges.txt": b"a b\n"} | change
    for name, content in held.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(so.InputError, match=says) as caught:
        read_hf_tokenizer(tmp_path, None, "gpt2")
    assert "\n" not in str(caught.value)


PIECES = [("<unk>", 0.0, 2), ("a", -1.0, 1), ("b", -2.0, 1)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (sentencepiece(PIECES, kind=1), "is no BPE; put the model's tokenizer.json"),
        (sentencepiece(PIECES, normaliser=b""), "changes characters before it cuts"),
        (sentencepiece([*PIECES, PIECES[1]]), "names a piece twice"),
        (sentencepiece(PIECES)[:-3], "not a whole sentencepiece model"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "not a whole sentencepiece model"),
        (message((1, 5)), "not a whole sentencepiece model"),
        (message((1, message((1, 7)))), "not a whole sentencepiece model"),
        (b"version https://git-lfs", "not a whole sentencepiece model"),
    ],
)
def test_damaged_pieces_are_one_line(content, says, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(so.InputError, match=says):
        read_hf_tokenizer(tmp_path)


def test_half_of_a_pair_is_no_tokenizer(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    assert read_hf_tokenizer(tmp_path) is None
