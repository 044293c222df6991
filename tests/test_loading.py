"""Opening a model: a real one gives its reference numbers, and everything that is wrong with a directory is said at the door."""

from __future__ import annotations

import json
import struct
import sys
import types
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.attention.spec import PLAIN
from sysout_jax.checkpoints.formats.hf_config import read_config
from tests.parity_cases import FIXTURES, VOCAB

pytestmark = pytest.mark.optimised

WEIGHTS = "model.safetensors"
TENSOR = "model.layers.1.mlp.up_proj.weight"


def edit_config(directory: Path, **fields) -> None:
    """Set fields of config.json; `...` deletes one."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(directory: Path, edit: Callable[[dict], None]) -> None:
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS)


def refusal(path) -> str:
    """The one line with which `so.load` refuses."""
    with pytest.raises(so.InputError) as caught:
        so.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def logits_of(path, dtype: str = "float32") -> np.ndarray:
    return np.asarray(so.capture(so.load(path, dtype), np.arange(8)[None] % VOCAB, ())[0])


def test_a_trained_model_gives_its_reference_logits(shared_data):
    """Computed by an independent implementation in C; 2e-5 is float32 rounding at logits around 10."""
    lm = so.load(shared_data / "aidreams-260k")
    with np.load(shared_data / "aidreams-260k" / "reference_logits.npz") as reference:
        logits, _ = so.capture(lm, reference["tokens"][None], ())
        np.testing.assert_allclose(logits[0], reference["logits"], rtol=0, atol=2e-5)
    assert lm.tokenizer is not None and lm.tokenizer.bos_id == 1
    assert lm.tokenizer.vocab_size == lm.config.vocab_size == 512


# --- tensors


def test_wrong_tensors_are_all_listed_by_name(hf_copy):
    directory = hf_copy("llama-mha")

    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)
        tensors[TENSOR] = tensors[TENSOR].T.copy()

    edit_tensors(directory, damage)
    message = refusal(directory)
    assert "missing tensors: model.norm.weight;" in message
    assert "unexpected tensors: model.layers.2.mlp.up_proj.weight;" in message
    assert f"wrong shapes: {TENSOR} is (16, 24), the config implies (24, 16);" in message


def test_more_layers_than_tensors(hf_copy):
    """Said before anything is built for them."""
    directory = hf_copy("llama-mha")
    edit_config(directory, num_hidden_layers=10_000)
    assert "implies 10000 layers, the file holds 21 tensors" in refusal(directory)
    edit_config(directory, num_hidden_layers=10**9)
    assert "num_hidden_layers is 1000000000; expected a whole number" in refusal(directory)


def test_quantised_weights_are_refused(hf_copy):
    directory = hf_copy("llama-mha")
    edit_tensors(directory, lambda t: t.update({TENSOR: t[TENSOR].astype(np.int8)}))
    assert f"{TENSOR} is I8" in refusal(directory)


@pytest.mark.parametrize("kept", [4, 100, -1], ids=["in the length", "in the header", "at the end"])
def test_truncated_weights(hf_copy, kept):
    path = hf_copy("llama-mha") / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not a whole safetensors file" in refusal(path.parent)


def test_an_absurd_header_length(hf_copy):
    path = hf_copy("llama-mha") / WEIGHTS
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    assert "not a whole safetensors file" in refusal(path.parent)


def test_a_header_that_would_take_minutes(hf_copy):
    path = hf_copy("llama-mha") / "model.safetensors"
    path.write_bytes((100 << 20).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(so.InputError, match="a header of 104,857,600 bytes, expected at most"):
        so.load(path.parent)


def test_an_index_that_would_take_minutes(hf_copy):
    path = hf_copy("llama-mha") / "model.safetensors.index.json"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    (path.parent / WEIGHTS).unlink()  # which would be read in its place
    with pytest.raises(so.InputError, match="at most"):
        so.load(path.parent)


def test_missing_shard_is_named(hf_copy):
    directory = hf_copy("llama-gqa-sharded")
    (directory / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors; finish the download" in refusal(directory)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"x": 1}}', '{"weight_map": {}}']
)
def test_damaged_index(hf_copy, text):
    directory = hf_copy("llama-gqa-sharded")
    (directory / "model.safetensors.index.json").write_text(text)
    assert str(directory) in refusal(directory)


def test_no_weights_at_all(hf_copy):
    directory = hf_copy("gpt2")
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    message = refusal(directory)
    assert "pytorch_model.bin" in message and "no model.safetensors" in message


def test_a_tied_model_may_bring_its_head_along(hf_copy):
    directory = hf_copy("llama-tied")
    before = logits_of(directory)
    edit_tensors(
        directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()})
    )
    np.testing.assert_array_equal(logits_of(directory), before)


@pytest.mark.parametrize(
    "files", [["adapter_config.json"], ["adapter_config.json", "adapter_model.safetensors"]]
)
def test_an_adapter_beside_the_weights_is_told(hf_copy, files):
    directory = hf_copy("llama-mha")
    before = logits_of(directory)
    for file in files:
        (directory / file).write_text("{}")
    (note,) = so.load(directory).notes
    assert note.startswith(f"An adapter lies beside the weights ({', '.join(files)}) and is not")
    np.testing.assert_array_equal(logits_of(directory), before)


def test_a_tied_model_with_another_head(hf_copy, monkeypatch):
    """Computed with its own head, as transformers does, whatever the config says; in whichever chunk the difference lies."""
    monkeypatch.setattr("sysout_jax.checkpoints.formats.safetensors.CHUNK", 50)
    directory = hf_copy("llama-tied")
    before = logits_of(directory)

    def head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][-1] += 1

    edit_tensors(directory, head)
    lm = so.load(directory)
    (note,) = lm.notes
    assert "the stored head differs from it" in note and not lm.config.tied_embeddings
    changed = logits_of(directory)
    np.testing.assert_array_equal(changed[..., :-1], before[..., :-1])
    assert (changed[..., -1] != before[..., -1]).any()
    edit_config(directory, tie_word_embeddings=False)
    np.testing.assert_array_equal(logits_of(directory), changed)
    assert so.load(directory).notes == ()


def test_a_head_of_the_same_numbers_in_another_format(hf_copy):
    directory = hf_copy("llama-tied")

    def head(tensors):
        rounded = tensors["model.embed_tokens.weight"].astype(np.float16)
        tensors |= {
            "lm_head.weight": rounded,
            "model.embed_tokens.weight": rounded.astype(np.float32),
        }

    edit_tensors(directory, head)
    lm = so.load(directory)
    assert lm.config.tied_embeddings and lm.notes == ()


def test_a_tied_model_with_a_head_of_another_shape(hf_copy):
    directory = hf_copy("llama-tied")
    edit_tensors(directory, lambda t: t.update({"lm_head.weight": np.ones((3, 2), np.float32)}))
    assert "lm_head.weight is (3, 2), the config implies" in refusal(directory)


@pytest.mark.parity
def test_transformers_does_not_tie_another_head_either(hf_copy):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = hf_copy("llama-tied")
    edit_tensors(
        directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    assert torch.equal(head, embedding + 1)


@pytest.mark.parametrize(
    ("case", "buffers"),
    [
        ("llama-mha", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
    ],
)
def test_buffers_of_old_checkpoints_are_ignored(hf_copy, case, buffers):
    directory = hf_copy(case)
    before = logits_of(directory)
    # causal masks were stored as bytes or booleans
    edit_tensors(directory, lambda t: t.update({b: np.ones((1, 1, 4, 4), bool) for b in buffers}))
    np.testing.assert_array_equal(logits_of(directory), before)


def test_a_bare_base_model_lacks_the_prefix(hf_copy):
    directory = hf_copy("gpt2")
    before = logits_of(directory)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    edit_tensors(directory, strip)
    np.testing.assert_array_equal(logits_of(directory), before)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_number_formats(hf_copy, stored):
    directory = hf_copy("llama-tied")
    edit_tensors(directory, lambda t: t.update({k: v.astype(stored) for k, v in t.items()}))
    lm = so.load(directory)
    tensors = load_file(directory / WEIGHTS)
    np.testing.assert_array_equal(
        lm.params["layer_1"]["mlp"]["up_proj"]["kernel"], tensors[TENSOR].T.astype(np.float32)
    )
    assert so.load(directory, "bfloat16").read("embed")["embedding"].dtype == ml_dtypes.bfloat16


# --- config


def test_unknown_architecture(hf_copy):
    directory = hf_copy("llama-mha")
    edit_config(directory, model_type="mamba")
    assert "architecture 'mamba' is unknown; expected one of" in refusal(directory)
    edit_config(directory, model_type=..., architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM" in refusal(directory)


@pytest.mark.parametrize(
    ("case", "setting", "named"),
    [
        ("llama-mha", {"rope_parameters": {"rope_type": "spiral", "factor": 4.0}}, "'spiral'"),
        ("llama-mha", {"rope_parameters": ..., "rope_scaling": {"type": "new"}}, "'new'"),
        ("llama-mha", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        (
            "llama-mha",
            {"rope_parameters": {"rope_type": "default", "mscale": 2.0}},
            "mscale",
        ),
        ("llama-mha", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama-mha", {"some_new_switch": 3}, "some_new_switch=3"),
        ("llama-mha", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama-mha", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama-mha", {"num_key_value_heads": 3}, "multiple of num_kv_heads 3"),
        ("llama-mha", {"hidden_size": ...}, "field hidden_size is missing"),
        ("llama-mha", {"vocab_size": "many"}, "'many'"),
        ("llama-mha", {"vocab_size": 2**31}, "to 2,147,483,647"),
        ("llama-mha", {"num_attention_heads": 0, "head_dim": None}, "num_attention_heads is 0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"activation_function": "mish"}, "activation_function = 'mish'"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_settings_that_are_not_implemented(hf_copy, case, setting, named):
    directory = hf_copy(case)
    edit_config(directory, **setting)
    message = refusal(directory)
    assert named in message and str(directory / "config.json") in message


def test_an_unknown_field_that_is_off_does_no_harm(hf_copy):
    directory = hf_copy("llama-mha")
    edit_config(directory, use_some_new_switch=False, another=None)
    so.load(directory)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_damaged_config(hf_copy, text):
    directory = hf_copy("gpt2")
    (directory / "config.json").write_text(text)
    assert str(directory / "config.json") in refusal(directory)


@pytest.mark.parametrize("case", ["llama-mha", "llama-linear-rope", "llama-llama3-rope"])
def test_rotary_settings_of_transformers_4_and_5_mean_the_same(case):
    five = json.loads((FIXTURES / case / "config.json").read_text())
    four = dict(five)
    scaling = dict(four.pop("rope_parameters"))
    four["rope_theta"] = scaling.pop("rope_theta")
    four["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    assert read_config(four, "4") == read_config(five, "5")
    if four["rope_scaling"] and scaling["rope_type"] == "linear":
        oldest = four | {"rope_scaling": {"type": "linear", "factor": scaling["factor"]}}
        assert read_config(oldest, "older") == read_config(five, "5")


def test_a_sliding_window_is_part_of_the_model(hf_copy):
    directory = hf_copy("mistral")
    config = so.load(directory).config
    assert (config.sliding_window, config.context_length) == (32, 64)
    assert config.layer(1).attention.window == 32
    edit_config(directory, sliding_window=None)
    assert so.load(directory).config.layer(1).attention == PLAIN


# --- paths and tokenizers


def test_what_is_not_a_model_directory(tmp_path):
    file = tmp_path / "model.txt"
    file.write_text("x")
    for path in (file, tmp_path):
        assert f"{path}: not a model; expected a directory" in refusal(path)
    assert "no such file or directory" in refusal(tmp_path / "nothing" / "here")
    assert "no such file or directory" in refusal("nothing")
    (tmp_path / "ckpt_100.pt").write_text("x")
    assert "it holds ckpt_100.pt; name that file" in refusal(tmp_path)


def test_what_is_fetched_from_the_hub(hf_copy, monkeypatch):
    """What a repository holds twice, or for other programs, is left there."""
    whole = hf_copy("gpt2")
    kept = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    kept |= {
        "merges.txt",
        "tokenizer.model",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    left = {"consolidated.safetensors", "consolidated-00001-of-2.safetensors", "pytorch_model.bin"}
    left |= {
        "adapter_model.safetensors",
        "onnx/model.safetensors",
        "onnx/config.json",
        "model.gguf",
    }
    fetched = set()

    def snapshot_download(repo_id, allow_patterns=("*",), ignore_patterns=()):
        assert repo_id == "some/model"
        for file in kept | left:
            if any(fnmatch(file, p) for p in allow_patterns) and not any(
                fnmatch(file, p) for p in ignore_patterns
            ):
                fetched.add(file)
        return str(whole)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert so.load("some/model").config == so.load(whole).config
    assert fetched == kept


def test_damaged_tokenizer(hf_copy):
    directory = hf_copy("gpt2")
    assert so.load(directory).tokenizer is None
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    assert f"{directory / 'tokenizer.json'}: not a readable tokenizer.json" in refusal(directory)


def test_damaged_conversion(tmp_path):
    (tmp_path / "model.json").write_text('{"config": {"family": "rnn"}}')
    assert "family is 'rnn'; expected one of llama, gpt2" in refusal(tmp_path)
    fields = {"family": "llama", "vocab_size": 3}
    (tmp_path / "model.json").write_text(json.dumps({"config": fields, "bos_token_id": None}))
    assert "misses context_length, d_model" in refusal(tmp_path)
