"""llama2.c models and tokenizers: a real model gives its reference logits, damaged files cost one line."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.checkpoints.formats.llama2c_tokenizer import read_tokenizer_bin
from sysout_jax.data.tokenizers import Tokenizer
from tests.convert.command import assert_same_model, everything_below, refusal, run_here

AK42 = struct.pack("<I", 0x616B3432)


def paired(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of every head from (first half, second half) to neighbouring pairs."""
    out = np.empty_like(rows)
    half = head_dim // 2
    for start in range(0, len(rows), head_dim):
        for i in range(half):
            out[start + 2 * i] = rows[start + i]
            out[start + 2 * i + 1] = rows[start + half + i]
    return out


def model_file(config: dict, tensors: dict[str, np.ndarray], version: int = 0) -> bytes:
    """What export.py writes for the tensors of a Hugging Face LLaMA."""
    L, Dh = config["num_hidden_layers"], config["head_dim"]
    shared = config["tie_word_embeddings"]
    block = "model.layers.{}."

    def every(name: str, heads: bool = False) -> bytes:
        found = [tensors[block.format(l) + name + ".weight"] for l in range(L)]
        return b"".join((paired(x, Dh) if heads else x).astype("<f4").tobytes() for x in found)

    parts = {
        "embed": tensors["model.embed_tokens.weight"].astype("<f4").tobytes(),
        "norm": tensors["model.norm.weight"].astype("<f4").tobytes(),
        "norm 1": every("input_layernorm"),
        "norm 2": every("post_attention_layernorm"),
        "attn": every("self_attn.q_proj", True)
        + every("self_attn.k_proj", True)
        + every("self_attn.v_proj")
        + every("self_attn.o_proj"),
        "mlp": every("mlp.gate_proj") + every("mlp.down_proj") + every("mlp.up_proj"),
        "head": b"" if shared else tensors["lm_head.weight"].astype("<f4").tobytes(),
    }
    angles = np.outer(
        np.arange(config["max_position_embeddings"]), 10_000.0 ** -(np.arange(0, Dh, 2) / Dh)
    )
    parts["rotary"] = b"".join(f(angles).astype("<f4").tobytes() for f in (np.cos, np.sin))
    sizes = [
        config[name]
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    ]
    if version == 0:
        sizes[5] *= 1 if shared else -1
        order = ["embed", "norm 1", "attn", "norm 2", "mlp", "norm", "rotary", "head"]
        head = struct.pack("<7i", *sizes)
    else:
        order = ["norm 1", "norm 2", "norm", "embed", "attn", "mlp", "head"]
        head = (AK42 + struct.pack("<i7iB", version, *sizes, shared)).ljust(256, b"\0")
    return head + b"".join(parts[name] for name in order)


def tokenizer_file(spec: dict, old: bool = False) -> bytes:
    """What export_tokenizer writes; sentencepiece's scores fall from merge to merge. `old` spells bytes as characters."""
    vocab = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    built = dict.fromkeys(a + b for a, b in spec["model"]["merges"])
    # runs of spaces all have the same, lowest score
    scores = {piece: -float(i) if piece.strip("▁") else -1e9 for i, piece in enumerate(built)}
    body = b""
    for i, piece in enumerate(vocab):
        if i in (1, 2):
            piece = f"\n{piece}\n"
        elif old and 3 <= i < 259:
            piece = chr(int(piece[3:5], 16))
        raw = piece.replace("▁", " ").encode()
        body += struct.pack("<fI", scores.get(vocab[i], 0.0), len(raw)) + raw
    return struct.pack("<I", max(map(len, vocab))) + body


@pytest.fixture
def trained(shared_data):
    """The real model: its directory, config and tensors."""
    directory = shared_data / "aidreams-260k"
    config = json.loads((directory / "config.json").read_text())
    return directory, config, load_file(directory / "model.safetensors")


@pytest.mark.parametrize("version", [0, 1])
def test_a_trained_model_gives_its_reference_logits(trained, tmp_path, version):
    """The logits come from an independent implementation in C; 2e-5 is float32 rounding at logits around 10."""
    directory, config, tensors = trained
    path = tmp_path / "model.bin"
    path.write_bytes(model_file(config, tensors, version))
    lm = so.load(path)
    with np.load(directory / "reference_logits.npz") as reference:
        logits, _ = so.capture(lm, reference["tokens"][None], ())
        np.testing.assert_allclose(logits[0], reference["logits"], rtol=0, atol=2e-5)
    assert_same_model(lm, so.load(directory))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("case", ["llama-mha", "llama-mqa", "llama-tied", "llama-gqa-sharded"])
def test_fresh_models(hf_copy, tmp_path, monkeypatch, case, version):
    """Grouped queries, tied and untied heads: the same model as its Hugging Face directory, converted equals direct."""
    directory = hf_copy(case)
    rng = np.random.default_rng()
    tensors = {}
    for file in directory.glob("*.safetensors"):
        fresh = {k: rng.normal(0, 0.3, v.shape).astype("f4") for k, v in load_file(file).items()}
        save_file(fresh, file)
        tensors |= fresh
    config = json.loads((directory / "config.json").read_text())
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    path = tmp_path / "model.bin"
    path.write_bytes(model_file(config, tensors, version))
    assert_same_model(so.load(path), so.load(directory))
    if case == "llama-gqa-sharded":
        assert run_here(monkeypatch, "--src", path, "--out", tmp_path / "out") == 0
        assert_same_model(so.load(path), so.load(tmp_path / "out"))


# --- tokenizers


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["aidreams-260k", "llama2-tokenizer"])
def test_tokenizer_bin_is_the_same_tokenizer(shared_data, tmp_path, name, old):
    """Merges follow from the scores alone; the reference is the tokenizer.json of the same sentencepiece model."""
    reference = shared_data / name / "tokenizer.json"
    spec = json.loads(reference.read_text())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file(spec, old))
    found = read_tokenizer_bin(tmp_path / "tokenizer.bin", len(spec["model"]["vocab"]), 1)
    ours = json.loads(found.backend.to_str())
    assert ours["model"]["vocab"] == spec["model"]["vocab"]
    merges, want_merges = ours["model"]["merges"], spec["model"]["merges"]
    # the ways to build one piece, and all runs of spaces, share a score and have no order among themselves
    in_order, want_order = (
        [a + b for a, b in some if (a + b).strip("▁")] for some in (merges, want_merges)
    )
    assert in_order == want_order
    assert sorted(merges) == sorted(want_merges)
    want = Tokenizer.from_file(reference, 1)
    texts = [
        "Summer is warm. Winter is cold.\n",
        "  two spaces,\ttabs and\n\nlines ",
        "Ünïcödé, 漢字, 🙂 and <s> in the text",
        (shared_data / "text" / "wikitext2-test.txt").read_text()[:20_000],
    ]
    for text in texts:
        assert found.encode(text) == want.encode(text)
        assert found.decode(found.encode(text)) == want.decode(want.encode(text))


def test_a_tokenizer_beside_the_model_is_used(trained, tmp_path, monkeypatch):
    directory, config, tensors = trained
    path = tmp_path / "model.bin"
    path.write_bytes(model_file(config, tensors))
    assert so.load(path).tokenizer is None
    spec = json.loads((directory / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file(spec))
    text = "Once upon a time, there was a dragon."
    want = so.load(directory).tokenizer.encode(text)
    for flags in ([], ["--format", "hf"]):
        out = tmp_path / f"out{len(flags)}"
        assert run_here(monkeypatch, "--src", path, "--out", out, *flags) == 0
        for model in (path, out):
            tokenizer = so.load(model).tokenizer
            assert tokenizer.encode(text) == want and tokenizer.bos_id == 1
    (tmp_path / "tokenizer.bin").write_bytes(b"damaged")
    assert "tokenizer.bin" in refusal(path, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    assert so.load(path).tokenizer.encode(text) == want


@pytest.mark.parametrize(
    "damage", ["short", "other size", "twice", "no bytes", "not text", "empty"]
)
def test_bad_tokenizers(shared_data, tmp_path, damage):
    spec = json.loads((shared_data / "aidreams-260k" / "tokenizer.json").read_text())
    whole = tokenizer_file(spec)
    vocab = spec["model"]["vocab"]
    if damage in ("twice", "no bytes"):
        old, new = ("isp", "hisp") if damage == "twice" else ("<0x07>", "seven")
        raw = [piece.replace("▁", " ").encode() for piece in (old, new)]
        at = [struct.pack("<I", len(piece)) + piece for piece in raw]
        assert whole.count(at[0]) == 1
        whole = whole.replace(*at)
    data = {"short": whole[:-1], "not text": whole[:-1] + b"\xff", "empty": b""}.get(damage, whole)
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(so.InputError) as caught:
        read_tokenizer_bin(path, len(vocab) + (damage == "other size"), 1)
    assert str(path) in str(caught.value)


# --- bad input


def test_short_and_long_files(trained, tmp_path, monkeypatch, capsys):
    _, config, tensors = trained
    path = tmp_path / "model.bin"
    for version in (0, 1):
        whole = model_file(config, tensors, version)
        for kept in (0, 3, 27, 28, 200, 1000, len(whole) - 1):
            path.write_bytes(whole[:kept])
            refusal(path)
        path.write_bytes(whole + b"\0")
        message = refusal(path)
        assert f"{len(whole) + 1:,} bytes" in message and f"{len(whole):,}" in message
        before = everything_below(tmp_path)
        assert run_here(monkeypatch, "--src", path, "--out", tmp_path / "out") == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert everything_below(tmp_path) == before


@pytest.mark.parametrize("value", [-(2**31), -1, 0, 3, 2**31 - 1])
@pytest.mark.parametrize("field", range(7))
def test_any_number_in_the_header_may_be_wrong(tmp_path, field, value):
    """No size is believed before the file's length confirms it."""
    sizes = [8, 12, 1, 2, 2, 10, 16]
    sizes[field] = value
    path = tmp_path / "model.bin"
    for header in (struct.pack("<7i", *sizes), AK42 + struct.pack("<i7iB", 1, *sizes, 1)):
        path.write_bytes(header.ljust(4096, b"\0"))
        refusal(path)


def test_quantised_and_unknown_versions(tmp_path):
    path = tmp_path / "model.bin"
    for version, said in ((2, "int8 weights"), (7, "unknown layout")):
        path.write_bytes((AK42 + struct.pack("<i", version)).ljust(300, b"\0"))
        message = refusal(path)
        assert said in message and "as version 1" in message


def test_another_rotary_base_is_noticed(trained, tmp_path):
    _, config, tensors = trained
    path = tmp_path / "model.bin"
    data = bytearray(model_file(config, tensors))
    tables = config["max_position_embeddings"] * config["head_dim"] * 4
    data[-tables:] = np.full(tables // 4, 0.5, "<f4").tobytes()
    path.write_bytes(data)
    assert "rotary tables are not those of base 10000" in refusal(path)


def test_the_magic_number_is_enough(trained, tmp_path):
    _, config, tensors = trained
    path = tmp_path / "model.weights"
    path.write_bytes(model_file(config, tensors, 1))
    assert so.load(path).config.d_model == 64
