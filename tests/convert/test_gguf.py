"""GGUF files of llama and gpt2: the weights of the Hugging Face model that they were made from, exactly, whatever type they are stored in."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import sysout_jax as so
from analyze import existence
from sysout_jax.containers.gguf_file import PLAIN, UNREADABLE, GgufFile
from sysout_jax.models.layers import rotary_frequencies
from sysout_jax.rope_scaling import RopeScaling
from tests.analyze.command import call, write_model
from tests.convert.gguf_writer import hf_tensors, paired, to_gguf, write_gguf
from tests.limits import memory_below, within
from tests.parity_cases import FIXTURES

CASES = [
    "llama-mha",
    "llama-gqa-sharded",
    "llama-tied",
    "llama-head-dim",
    "llama-biases",
    "llama-linear-rope",
    "qwen2",
    "gpt2",
]


def equal(one: so.LanguageModel, other: so.LanguageModel) -> bool:
    same = jax.tree.map(
        lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one.params, other.params
    )
    return all(jax.tree.leaves(same))


@pytest.mark.parametrize("case", CASES)
def test_float32_is_the_hugging_face_model_exactly(case, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(FIXTURES / case, path)
    ours, theirs = so.load(path), so.load(FIXTURES / case)
    assert equal(ours, theirs)
    if case == "qwen2":
        assert ours.config.qkv_bias and not ours.config.o_bias
    assert ours.config == theirs.config


def test_a_forgotten_permutation_shows(tmp_path):
    with np.load(FIXTURES / "llama-mha" / "reference.npz") as reference:
        tokens, logits = reference["tokens"], reference["logits"]
    for permute, largest in ((True, 1e-4), (False, None)):
        path = tmp_path / f"{permute}.gguf"
        write_gguf(FIXTURES / "llama-mha", path, permute=permute)
        difference = np.abs(so.capture(so.load(path), tokens, ())[0] - logits).max()
        assert difference < largest if largest else difference > 1


def test_rows_of_a_head_lie_where_the_format_says():
    assert paired(np.arange(8)[:, None], 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A LLaMA whose rows are whole blocks of every type."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "num_hidden_layers": 1}
    return write_model(tmp_path_factory.mktemp("wide") / "model", **sizes)


@pytest.mark.parametrize(
    "kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
)
def test_quantised_from_weights(kind, wide, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(wide, path, quantise=kind)
    lm = so.load(path)
    config = json.loads((wide / "config.json").read_text())
    attn = lm.params["layer_0"]["attn"]
    for name, ours in (
        ("q_proj", attn["q_proj"]),
        ("k_proj", attn["k_proj"]),
        ("o_proj", attn["o_proj"]),
    ):
        w = hf_tensors(wide)[f"model.layers.0.self_attn.{name}.weight"]
        stored = to_gguf(f"model.layers.0.self_attn.{name}.weight", w, config)[1]
        rounded = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
        if name != "o_proj":  # the converter's own inverse
            heads = 4 if name == "q_proj" else 2
            rows = rounded.reshape(heads, len(rounded) // heads // 2, 2, -1)
            rounded = rows.swapaxes(1, 2).reshape(rounded.shape)
        np.testing.assert_array_equal(np.asarray(ours["kernel"]), rounded.T)
    assert kind.name in lm.stored_as["mlp/down_proj/kernel"]


@pytest.mark.slow
def test_reports_say_how_each_kind_of_matrix_is_stored(wide, tmp_path, monkeypatch, capsys):
    write_gguf(wide, tmp_path / "model.gguf", quantise=Type.Q8_0)
    shutil.copy(wide / "tokenizer.json", tmp_path)
    flags = ("--num-seqs", 1, "--seq-len", 8, "--out", tmp_path / "out")
    assert call(monkeypatch, existence.main, "--ckpt", tmp_path / "model.gguf", *flags) == 0
    report = json.loads((tmp_path / "out" / "existence.json").read_text())
    held = report["settings"]["stored_as"]
    matrices = {f"attn/{part}_proj/kernel" for part in "qkvo"}
    matrices |= {f"mlp/{part}_proj/kernel" for part in ("gate", "up", "down")}
    assert {name: held[name] for name in matrices} == dict.fromkeys(matrices, "Q8_0")
    assert held["attn_norm/scale"] == held["mlp_norm/scale"] == "F32"
    assert "Q8_0" in (tmp_path / "out" / "report.html").read_text()


READABLE = [kind for kind in Type if kind not in UNREADABLE and kind not in PLAIN]


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_every_type_that_the_package_dequantises(kind, wide, tmp_path):
    """Random blocks, as the package reads them."""
    path = tmp_path / "model.gguf"
    write_gguf(wide, path)
    rng = np.random.default_rng(int(kind))
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (256, 512 // block * nbytes), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = GgufFile(tmp_path / "one.gguf").read("w")
    assert got.shape == (256, 512)
    np.testing.assert_array_equal(got, gguf.quants.dequantize(rows, kind))


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_K, Type.IQ4_XS], ids=lambda kind: kind.name)
def test_dequantising_holds_little_beyond_what_it_gives(kind, tmp_path):
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (7, 2_000, 1_024)  # a stack of experts
    rows = np.random.default_rng(0).integers(
        0, 120, (*shape[:2], shape[2] // block * nbytes), np.uint8
    )
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("w", rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "one.gguf")
    tracemalloc.start()
    try:
        got = file.read("w")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got.shape == shape and peak < 1.3 * got.nbytes
    np.testing.assert_array_equal(got[[0, 6]], gguf.quants.dequantize(rows[[0, 6]], kind))


def test_llama3_frequencies_come_as_a_tensor(tmp_path):
    case = FIXTURES / "llama-llama3-rope"
    theirs = so.load(case).config
    plain = rotary_frequencies(theirs.head_dim, theirs.rope_theta, None)
    scaled = rotary_frequencies(theirs.head_dim, theirs.rope_theta, theirs.rope_scaling)
    path = tmp_path / "model.gguf"
    write_gguf(case, path, change=lambda tensors: tensors | {"rope_freqs.weight": plain / scaled})
    ours = so.load(path).config
    assert ours.rope_scaling.kind == "factors"
    got = rotary_frequencies(ours.head_dim, ours.rope_theta, ours.rope_scaling)
    np.testing.assert_allclose(got, scaled, rtol=2e-7)
    with np.load(case / "reference.npz") as reference:
        logits = so.capture(so.load(path), reference["tokens"], ())[0]
        np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


def test_frequency_factors_equal_llama3_far_away():
    """At position 16,000 the angles, not only the frequencies, agree."""
    scaling = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    plain = rotary_frequencies(128, 5e5, None)
    want = rotary_frequencies(128, 5e5, scaling)
    factors = tuple((plain.astype(np.float64) / want).astype(np.float32).tolist())
    got = rotary_frequencies(128, 5e5, RopeScaling(kind="factors", factor=1.0, factors=factors))
    np.testing.assert_allclose(16_000 * got.astype(float), 16_000 * want.astype(float), atol=4e-3)


@pytest.mark.slow
def test_frequency_factors_equal_llama3_at_16k_tokens(tmp_path):
    """The logits of the last tokens are those of the Hugging Face model, and without the factors they are not."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    changes = {"rope_scaling": scaling, "rope_theta": 5e5, "max_position_embeddings": 2**14}
    hf = write_model(tmp_path / "hf", num_hidden_layers=1, **changes)
    config = so.load(hf).config
    plain, scaled = (
        rotary_frequencies(config.head_dim, config.rope_theta, each)
        for each in (None, config.rope_scaling)
    )
    factors = {"rope_freqs.weight": plain / scaled}
    assert 1 < factors["rope_freqs.weight"][1] < factors["rope_freqs.weight"][2] == 8

    def sharper(tensors):  # attention that is near even would hide where the keys are
        return tensors | {n: 8 * w for n, w in tensors.items() if "attn_q." in n}

    write_gguf(hf, tmp_path / "with.gguf", change=lambda tensors: sharper(tensors) | factors)
    write_gguf(hf, tmp_path / "without.gguf", change=sharper)
    tokens = np.random.default_rng(0).integers(0, 256, (1, 2**14))

    def last(lm: so.LanguageModel) -> np.ndarray:
        return np.asarray(so.capture(lm, tokens, ())[0])[0, -100:]

    def queries(layer):
        kernel = 8 * layer["attn"]["q_proj"]["kernel"]
        return layer | {"attn": layer["attn"] | {"q_proj": {"kernel": kernel}}}

    want = last(so.load(hf).with_edits({"layer_0": queries}))
    found, without = (last(so.load(tmp_path / f"{name}.gguf")) for name in ("with", "without"))
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.abs(without - want).max() > 5e-3


def test_split_files(tmp_path):
    whole = tmp_path / "whole.gguf"
    write_gguf(FIXTURES / "llama-mha", whole)
    parts = [tmp_path / f"m-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    config = json.loads((FIXTURES / "llama-mha" / "config.json").read_text())
    tensors = [to_gguf(n, w, config) for n, w in hf_tensors(FIXTURES / "llama-mha").items()]
    reader = GgufFile(whole)
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for key, value in reader.fields.items():
                if key.startswith("llama."):
                    writer.add_key_value(key, value, _kind(value))
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(tensors))
        for name, w in tensors[number::3]:
            writer.add_tensor(name, np.ascontiguousarray(w, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert equal(so.load(parts[0]), so.load(whole))
    with pytest.raises(so.InputError, match="is part 2 of 3 of a split model; name the first part"):
        so.load(parts[1])
    parts[2].unlink()
    with pytest.raises(
        so.InputError, match="1 of 3 parts are not there, first m-00003-of-00003.gguf"
    ):
        so.load(parts[0])


def _kind(value) -> gguf.GGUFValueType:
    return gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.UINT32


def _header(
    kv: bytes = b"", kv_count: int = 0, tensors: bytes = b"", tensor_count: int = 0
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, kv_count) + kv + tensors


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _tensor(name=b"t", dims=(32,), kind=0, offset=0) -> bytes:
    return (
        _text(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


BAD = {
    "a claimed tensor": (
        _header(tensors=_tensor(), tensor_count=1),
        "leads past its end|larger than",
    ),
    "a huge dim": (
        _header(tensors=_tensor(dims=(2**42 + 1,)), tensor_count=1),
        "larger than the file",
    ),
    "many keys": (_header(kv_count=2**60), "keys, more than its"),
    "many tensors": (_header(tensor_count=2**60), "tensors, more than its"),
    "an unknown type": (
        _header(tensors=_tensor(kind=99), tensor_count=1),
        "of type 99, which is unknown",
    ),
    "an offset past the end": (
        _header(tensors=_tensor(offset=2**40), tensor_count=1) + b"\0" * 4096,
        "leads past its end",
    ),
    "an endless string": (
        _header(struct.pack("<Q", 2**64 - 1) + b"\0" * 32, 1),
        "expected at most",
    ),
    "an endless value": (
        _header(_text(b"k") + struct.pack("<IQ", 8, 2**64 - 1) + b"\0" * 32, 1),
        "leads past its end",
    ),
    "an endless list": (
        _header(_text(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + b"\0" * 32, 1),
        "more than its",
    ),
    "an unknown value": (_header(_text(b"k") + struct.pack("<I", 77) + b"\0" * 32, 1), "type 77"),
    "lists of lists": (
        _header(_text(b"k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 32, 1),
        "of type 9, which is unknown",
    ),
    "no dimensions": (
        _header(tensors=_tensor(dims=()) + b"\0" * 64, tensor_count=1),
        "0 dimensions",
    ),
    "an empty tensor": (
        _header(tensors=_tensor(dims=(0,)) + b"\0" * 64, tensor_count=1),
        "or empty",
    ),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "another version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1, expected 2 or 3"),
    "no text": (_header(_text(b"\xff\xfe") + b"\0" * 32, 1), "not a whole GGUF file"),
    "half a header": (b"GGUF\3", "not a whole GGUF file"),
    "an unknown architecture": (
        _header(_text(b"general.architecture") + struct.pack("<I", 8) + _text(b"mam\x1b[31mba"), 1),
        "architecture 'mam.*x1b.*ba' is unknown; expected one of llama, gpt2, qwen2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_one_line(name, tmp_path):
    content, says = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with within(), memory_below(), pytest.raises(so.InputError, match=says) as caught:
        so.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "\x1b" not in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_header(tensor_count=1_000_000), "1,000,000 tensors, expected at most"),
        (_header(kv_count=1_000_000), "1,000,000 keys, expected at most"),
        (
            _header(_text(b"k") + struct.pack("<IIQ", 9, 8, 10_000_000), 1),
            "10,000,000 strings of k, expected at most",
        ),
        (
            _header(
                _text(b"a")
                + struct.pack("<IIQ", 9, 8, 100)
                + b"\0" * 800
                + _text(b"b")
                + struct.pack("<IIQ", 9, 8, 2_000_000 - 99),
                2,
            ),
            "1,999,901 strings of b, expected at most 1,999,900",
        ),
    ],
)
def test_a_file_of_holes_costs_no_time(content, says, tmp_path):
    """It claims what its size allows, at the price of seconds or minutes in Python."""
    path = tmp_path / "holes.gguf"
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(10**9)
    with within(), memory_below(), pytest.raises(so.InputError, match=says):
        so.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"blk.0.attn_q.weight": None}, "missing tensors: blk.0.attn_q.weight"),
        ({"blk.0.unheard_of.weight": np.zeros(4)}, "unexpected tensors: blk.0.unheard_of.weight"),
        ({"blk.1.ffn_norm.weight": np.zeros(5)}, "wrong shapes"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(change, says, tmp_path):
    def changed(tensors):
        return {name: w for name, w in (tensors | change).items() if w is not None}

    write_gguf(FIXTURES / "llama-mha", tmp_path / "m.gguf", change=changed)
    with pytest.raises(so.InputError, match=says):
        so.load(tmp_path / "m.gguf")


def test_settings_that_are_not_computed_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(FIXTURES / "llama-mha", path, keys={"add_expert_count": 4})
    with pytest.raises(so.InputError, match="field llama.expert_used_count is missing"):
        so.load(path)
    write_gguf(FIXTURES / "llama-mha", path, keys={"add_sliding_window": 7})
    with pytest.raises(so.InputError, match="not handled: llama.attention.sliding_window"):
        so.load(path)
