"""--format hf: the exported model is the same model, to this library bit for bit and to transformers in its logits."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import sysout_jax as so
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.hf_export import save_hugging_face
from sysout_jax.commands import cli
from sysout_jax.config import ModelConfig
from sysout_jax.errors import RunError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models import build
from sysout_jax.rope_scaling import RopeScaling
from sysout_jax.weights import InMemory
from tests.convert.command import assert_same_model, everything_below, run_here
from tests.parity_cases import CASES, FIXTURES, random_tokens

SIZE = {"vocab_size": 37, "context_length": 48, "d_model": 24, "d_ff": 40, "num_layers": 2}
LLAMA3 = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=0.5, high_freq_factor=4.0, original_context=32
)
MODELS: dict[str, ModelConfig] = {
    "gpt2": Gpt2Config(num_heads=4, **SIZE),
    "gpt2-nanogpt": Gpt2Config(num_heads=3, bias=False, activation="gelu", **SIZE),
    "gpt2-untied": Gpt2Config(num_heads=2, tied_embeddings=False, norm_eps=1e-3, **SIZE),
    "llama": LlamaConfig(num_heads=3, num_kv_heads=3, head_dim=8, **SIZE),
    "llama-gqa-tied": LlamaConfig(
        num_heads=4, num_kv_heads=2, head_dim=10, tied_embeddings=True, rope_theta=500.0, **SIZE
    ),
    "llama-llama3": LlamaConfig(
        num_heads=2, num_kv_heads=1, head_dim=12, rope_scaling=LLAMA3, norm_eps=1e-3, **SIZE
    ),
    "llama-linear": LlamaConfig(
        num_heads=2,
        num_kv_heads=1,
        head_dim=12,
        rope_scaling=RopeScaling(kind="linear", factor=3.0),
        mlp_bias=True,
        **SIZE,
    ),
    "llama-qkv-bias": LlamaConfig(num_heads=2, num_kv_heads=2, head_dim=8, qkv_bias=True, **SIZE),
}


def random_model(config: ModelConfig, seed: int | None = None) -> so.LanguageModel:
    shapes = jax.eval_shape(build(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes["params"]
    )
    return so.LanguageModel(config, InMemory(params))


def export(lm: so.LanguageModel, out: Path, **options) -> Path:
    save_hugging_face(out, lm.config, lm.source, "float32", **options)
    return out


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path, monkeypatch, capsys):
    src, out = FIXTURES / case, tmp_path / "out"
    assert run_here(monkeypatch, "--src", src, "--out", out, "--format", "hf") == 0
    assert "without a tokenizer" in capsys.readouterr().out
    there, back = so.load(src), so.load(out)
    if case == "nanogpt":  # transformers' class has biases; ours become zero
        assert back.config == dataclasses.replace(there.config, bias=True)
        tokens = random_tokens(0)
        one, other = (np.asarray(so.capture(lm, tokens, ())[0]) for lm in (there, back))
        np.testing.assert_array_equal(one, other)
        assert not np.any(back.params["layer_1"]["attn"]["qkv_proj"]["bias"])
        return
    assert_same_model(there, back)
    if case == "mistral-window":
        assert back.config.sliding_window == 5
    if case != "mistral":  # the same tensors under the same names
        held, written = ({}, {})
        for directory, tensors in ((src, held), (out, written)):
            for file in directory.glob("*.safetensors"):
                tensors |= load_file(file)
        assert held.keys() == written.keys()
        assert all(held[name].tobytes() == written[name].tobytes() for name in held)


@pytest.mark.parametrize("name", ["gpt2-nanogpt", "llama-gqa-tied"])
def test_shards(name, tmp_path):
    """Several files hold what one holds, none is too large, and the index names every tensor once."""
    lm = random_model(MODELS[name])
    one = export(lm, tmp_path / "one")
    some = export(lm, tmp_path / "some", shard_bytes=8_000)
    assert_same_model(so.load(one), so.load(some))
    assert [p.name for p in one.glob("*.safetensors*")] == ["model.safetensors"]

    index = json.loads((some / "model.safetensors.index.json").read_text())
    files = sorted(some.glob("*.safetensors"))
    assert len(files) > 2 and {p.name for p in files} == set(index["weight_map"].values())
    total = 0
    for path in files:
        tensors = load_file(path)
        assert set(tensors) == {n for n, file in index["weight_map"].items() if file == path.name}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        assert nbytes <= 8_000 or len(tensors) == 1
        total += nbytes
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
    assert index["metadata"] == {"total_size": total}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(tmp_path, monkeypatch, dtype):
    src, out = FIXTURES / "llama-tied", tmp_path / "out"
    args = ("--src", src, "--out", out, "--format", "hf", "--dtype", dtype)
    assert run_here(monkeypatch, *args) == 0
    assert {t.dtype.name for t in load_file(out / "model.safetensors").values()} == {dtype}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    assert_same_model(so.load(src, dtype), so.load(out, dtype))


def test_from_an_orbax_directory_with_its_tokenizer(shared_data, tmp_path, monkeypatch):
    src = shared_data / "aidreams-260k"
    assert run_here(monkeypatch, "--src", src, "--out", tmp_path / "orbax") == 0
    args = ("--src", tmp_path / "orbax", "--out", tmp_path / "hf", "--format", "hf")
    assert run_here(monkeypatch, *args) == 0
    there, back = so.load(src), so.load(tmp_path / "hf")
    assert_same_model(there, back)
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (
        src / "tokenizer.json"
    ).read_bytes()
    assert back.tokenizer and back.tokenizer.bos_id == 1
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "no staging is left"


def test_memory_holds_one_group(tmp_path):
    config = LlamaConfig(
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        vocab_size=64,
        context_length=64,
        d_model=128,
        d_ff=1024,
        num_layers=5,
    )
    lm = random_model(config, 0)
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.source.read("layer_0", "float32")))
    lm = so.load(export(lm, tmp_path / "src"))
    tracemalloc.start()
    try:
        export(lm, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert layer < peak < 3 * layer


@pytest.mark.parametrize(
    "attention", ["fixed_bias", "context_bias", "attention_bias", "context_scale", "sigmoid"]
)
def test_variants_have_no_class_in_transformers(tmp_path, attention):
    config = dataclasses.replace(MODELS["gpt2"], attention=attention)
    with pytest.raises(so.InputError, match=f"{attention}.*write it as an Orbax directory"):
        save_hugging_face(tmp_path / "out", config, InMemory({}), "float32")
    assert not everything_below(tmp_path)


def test_a_variant_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(MODELS["gpt2"], attention="sigmoid")
    lm = random_model(config)
    checkpoint.save(tmp_path / "src", config, lm.source, "float32")
    before = everything_below(tmp_path)
    args = ("--src", tmp_path / "src", "--out", tmp_path / "out", "--format", "hf")
    assert run_here(monkeypatch, *args) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(tmp_path / "src") in err and "'sigmoid'" in err
    assert everything_below(tmp_path) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sysout_jax.checkpoints.formats.hf_export._write_json", full)
    args = ("--src", FIXTURES / "gpt2", "--out", tmp_path / "out", "--format", "hf")
    assert run_here(monkeypatch, *args) == 1  # good input, but it cannot go on
    assert "No space left on device" in capsys.readouterr().err
    assert not everything_below(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch", reason="transformers needs torch")
    transformers = pytest.importorskip("transformers", reason="the other side of the comparison")
    lm = random_model(MODELS[name])
    out = export(lm, tmp_path / "out", shard_bytes=8_000 if "gqa" in name else 10**9)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = np.random.default_rng().integers(0, 37, (3, 40))
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(tokens)).logits.numpy()
    got, _ = so.capture(lm, tokens, ())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert np.abs(want).max() > 0.1  # far above the tolerance: zeros would not pass


@pytest.mark.parity
def test_transformers_reads_the_tokenizer(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the other side of the comparison")
    lm = so.load(shared_data / "aidreams-260k")
    out = export(lm, tmp_path / "out", tokenizer=lm.tokenizer, bos_id=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "Once upon a time, there was a dragon."
    assert tokenizer.encode(text, add_special_tokens=False) == lm.tokenizer.encode(text)
    assert tokenizer.bos_token_id == 1
    assert transformers.AutoConfig.from_pretrained(out).bos_token_id == 1


def test_status_of_a_wrong_format(monkeypatch, tmp_path):
    args = ("--src", FIXTURES / "gpt2", "--out", tmp_path / "out", "--format", "gguf")
    assert run_here(monkeypatch, *args) == cli.BAD_INPUT


@pytest.mark.parametrize("damage", ["weights", "config"])
def test_what_does_not_read_back_is_no_success(damage, tmp_path, monkeypatch):
    """Whatever the cause: here other numbers, or another setting, reach the disk."""
    from sysout_jax.checkpoints.formats import hf_export

    if damage == "weights":
        write = hf_export.write_safetensors

        def wrong(directory, tensors, arrays, *args):
            write(directory, tensors, (array + array.dtype.type(1) for array in arrays), *args)

        monkeypatch.setattr(hf_export, "write_safetensors", wrong)
    else:
        write_json = hf_export._write_json
        changed = {"layer_norm_epsilon": 0.1}
        monkeypatch.setattr(
            hf_export, "_write_json", lambda path, fields: write_json(path, fields | changed)
        )
    lm = random_model(MODELS["gpt2"])
    with pytest.raises(RunError, match="read again, it is not what was written"):
        export(lm, tmp_path / "out")
    assert not everything_below(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4, "qkv_bias": True},
        {"rotary_dims": 4},
        {"rope_scaling": RopeScaling(kind="factors", factor=1.0, factors=(1.0, 2.0, 2.0, 8.0))},
    ],
    ids=["window and biases", "heads that turn in part", "factors"],
)
def test_what_no_class_computes_is_refused(changes, tmp_path):
    lm = random_model(dataclasses.replace(MODELS["llama-gqa-tied"], head_dim=8, **changes))
    with pytest.raises(so.InputError, match="transformers.*; .*write it as an Orbax directory"):
        export(lm, tmp_path / "out")
    assert not (tmp_path / "out").exists()
