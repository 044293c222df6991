"""config.json as people publish it: harmless keys, other names for the same, and settings that somebody must accept."""

from __future__ import annotations

import json

import pytest

import sysout_jax as so
from sysout_jax.convert import __main__ as convert
from sysout_jax.convert.hf_config import read_config
from sysout_jax.errors import InputError, UnknownSettings
from tests.analyze.command import call
from tests.parity_cases import FIXTURES

LLAMA = {"LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"}
QWEN = {"Qwen2ForCausalLM"}
KNOWN = LLAMA | QWEN | {"GPT2LMHeadModel"}
#: What the published files hold, counted by hand: so many are of families that load.
NUMBER = 30


def fixture(case: str) -> dict:
    return json.loads((FIXTURES / case / "config.json").read_text())


def test_published_files_are_read_with_their_values(shared_data):
    files = sorted((shared_data / "configs").glob("*/config.json"))
    known = {}
    for file in files:
        fields = json.loads(file.read_text())
        if set(fields.get("architectures") or ()) & KNOWN and "nemotron" not in file.parent.name:
            known[file.parent.name] = fields
    assert len(known) == NUMBER
    for name, fields in known.items():
        layout, config = read_config(fields, name)
        classes = set(fields["architectures"])
        if classes & (LLAMA | QWEN):
            assert layout == "llama"
            heads = fields["num_attention_heads"]
            assert config.d_model == fields["hidden_size"] and config.num_heads == heads
            assert config.num_layers == fields["num_hidden_layers"]
            assert config.num_kv_heads == (fields.get("num_key_value_heads") or heads)
            assert config.head_dim == fields.get("head_dim", config.d_model // heads)
            assert config.norm_eps == fields["rms_norm_eps"]
            assert config.rope_theta == fields.get("rope_theta", 10_000.0)
            assert config.tied_embeddings == fields.get("tie_word_embeddings", False)
            scaling = fields.get("rope_scaling")
            assert (config.rope_scaling is None) == (scaling is None)
            if scaling:
                assert config.rope_scaling.factor == scaling["factor"]
            context = fields.get("max_position_embeddings", fields.get("max_sequence_length"))
            assert config.context_length == context
            assert config.sliding_window == (
                None if classes & QWEN else fields.get("sliding_window")
            )
            assert config.qkv_bias == bool(classes & QWEN)
            assert not config.o_bias and not config.mlp_bias
        else:
            assert layout == "gpt2"
            assert config.d_model == fields["n_embd"] and config.num_layers == fields["n_layer"]
            assert config.context_length == fields["n_positions"] and config.tied_embeddings
            assert config.activation == "gelu_tanh" and config.d_ff == 4 * config.d_model
        assert config.vocab_size == fields["vocab_size"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("_anything", 3), ("odd_token_id", 7), ("odd_token_ids", [7]), ("is_llama_config", True)],
)
def test_names_that_cannot_be_mathematics(name, value):
    fields = fixture("llama-mha")
    assert read_config(fields | {name: value}, "c") == read_config(fields, "c")


def test_two_names_of_one_value_must_agree():
    fields = fixture("llama-mha")
    context = fields["max_position_embeddings"]
    same = fields | {"max_sequence_length": context}
    assert read_config(same, "c") == read_config(fields, "c")
    del same["max_position_embeddings"]
    assert read_config(same, "c") == read_config(fields, "c")
    for other in (context + 1, float(context), str(context)):
        with pytest.raises(InputError, match="means the same"):
            read_config(fields | {"max_sequence_length": other}, "c")


def test_settings_that_must_be_accepted(hf_copy, tmp_path, monkeypatch, capsys):
    model, out = hf_copy("llama-mha"), tmp_path / "out"
    fields = fixture("llama-mha")
    fields |= {
        "depth_of_field": 1.5,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "x": 1},
    }
    (model / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UnknownSettings) as caught:
        so.load(model, accept=["rope_parameters.x"])
    assert caught.value.names == ("depth_of_field",)
    flags = ("--src", model, "--out", out, "--accept-setting")
    assert call(monkeypatch, convert.main, *flags, "depth_of_field") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "settings that are not handled: rope_parameters.x=1;" in line
    assert line.endswith("(--accept-setting rope_parameters.x)") and not out.exists()
    assert call(monkeypatch, convert.main, *flags, "depth_of_field", "rope_parameters.x") == 0
    assert so.load(out).config.rope_scaling.factor == 2.0


@pytest.mark.parametrize("accept", ["depth", [3], 5])
def test_what_is_no_list_of_settings(accept, hf_copy):
    with pytest.raises(InputError, match="^accept "):
        so.load(hf_copy("gpt2"), accept=accept)
