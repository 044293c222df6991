"""config.json as people publish it: harmless keys, other names for the same, and settings that somebody must accept."""

from __future__ import annotations

import json

import pytest

import sysout_jax as so
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.convert import __main__ as convert
from sysout_jax.errors import InputError, UnknownSettings
from tests.analyze.command import call
from tests.families.cases import CASES
from tests.parity_cases import FIXTURES

LLAMA = {"LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"}
QWEN = {"Qwen2ForCausalLM"}
KNOWN = LLAMA | QWEN | {"GPT2LMHeadModel"}
#: What the published files hold, counted by hand: so many are of families that load.
NUMBER = 30
#: directory → family, layers, d_model, d_ff, heads, key heads, head size, context, vocabulary, tied
REAL = {
    "chatterbox-gpt2-medium": ("gpt2", 24, 1024, 4096, 16, 16, 64, 8196, 50276, True),
    "codellama-13b": ("llama", 40, 5120, 13824, 40, 40, 128, 16384, 32016, False),
    "distilgpt2-old-no-model_type": ("gpt2", 6, 768, 3072, 12, 12, 64, 1024, 50257, True),
    "gpt2-medium": ("gpt2", 24, 1024, 4096, 16, 16, 64, 1024, 50257, True),
    "huggyllama-llama-7b": ("llama", 32, 4096, 11008, 32, 32, 128, 2048, 32000, False),
    "llama-1-7b-decapoda-style": ("llama", 32, 4096, 11008, 32, 32, 128, 2048, 32000, False),
    "llama-2-70b": ("llama", 80, 8192, 28672, 64, 8, 128, 2048, 32000, False),
    "llama-3.1-70b-instruct-fp8-modelopt": (
        *("llama", 80, 8192, 28672, 64, 8, 128, 131072, 128256, False),
    ),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 131072, 128256, True),
    "llava-vicuna-7b-partial-text_config": (
        *("llama", 32, 4096, 11008, 32, 32, 128, 4096, 32064, False),
    ),
    "mistral-7b-instruct-v0.3-dump": (
        *("llama", 32, 4096, 14336, 32, 8, 128, 32768, 32768, False),
    ),
    "smollm2-135m": ("llama", 30, 576, 1536, 9, 3, 64, 8192, 49152, True),
    "smollm2-135m-base-echo-4.48": ("llama", 30, 576, 1536, 9, 3, 64, 2048, 49152, True),
    "tinyllama-1.1b-chat-v0.4": ("llama", 22, 2048, 5632, 32, 4, 64, 2048, 32003, False),
}
FIELDS = """family num_layers d_model d_ff num_heads num_kv_heads head_dim context_length vocab_size
    tied_embeddings""".split()


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
        layout, config, _ = read_config(fields, name)
        classes = set(fields["architectures"])
        if classes & (LLAMA | QWEN):
            assert layout in ("llama", "mistral", "qwen2")
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
    [
        ("_anything", "from there"),
        ("_from_model_config", True),
        ("odd_token_id", 7),
        ("odd_token_ids", [7]),
        ("is_llama_config", True),
        ("is_causal", True),
        ("odd", None),
        ("use_odd", False),
        ("use_cache", False),
        ("use_qk_norm", False),
        ("use_bidirectional_attention", False),
        ("add_cross_attention", False),
        ("odd_bias", False),
        ("is_encoder_decoder", False),
        ("architectures", []),
        ("architectures", ["LlamaModel"]),
        ("architectures", ["OddForCausalLM"]),
    ],
)
def test_names_that_cannot_be_mathematics(name, value):
    fields = fixture("llama-mha")
    assert read_config(fields | {name: value}, "c") == read_config(fields, "c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_rope", False),
        ("rope", False),
        ("causal", False),
        ("use_causal_mask", False),
        ("use_rms_norm", False),
        ("pre_norm", False),
        ("odd", False),
        ("_attn_scale", 3.0),
        ("unsloth_scale", 3),
        ("_scales", [1, 2]),
        ("_remove_final_layer_norm", True),
        ("architectures", ["LlamaBidirectionalModel"]),
        ("architectures", ["LlamaForMaskedLM"]),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [3]),
    ],
)
def test_what_could_be_another_model_must_be_accepted(name, value):
    """Off where on is usual, a number under a private name, a class that does not predict the next token."""
    fields = fixture("llama-mha")
    with pytest.raises(UnknownSettings, match=f"^c: settings that are not handled: {name}="):
        read_config(fields | {name: value}, "c")
    assert (
        read_config(fields | {name: value}, "c", [name]).config == read_config(fields, "c").config
    )


def test_the_class_is_named():
    fields = fixture("llama-mha") | {"architectures": ["LlamaBidirectionalModel"]}
    with pytest.raises(UnknownSettings, match="architectures='LlamaBidirectionalModel'; "):
        read_config(fields, "c")


@pytest.mark.parametrize("value", [False, None, 0, "no"])
@pytest.mark.parametrize("case", ["llama-mha", "gpt2", "mistral", "qwen2"])
def test_attention_that_is_not_causal(case, value):
    """As transformers reads it, in which null is not True either."""
    fields = fixture(case)
    with pytest.raises(InputError, match="^c: is_causal = .* is not implemented, expected True;"):
        read_config(fields | {"is_causal": value}, "c", ["is_causal"])


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
    assert line.endswith("(--accept-setting depth_of_field rope_parameters.x)")
    assert not out.exists()
    assert call(monkeypatch, convert.main, *flags, "depth_of_field", "rope_parameters.x") == 0
    assert so.load(out).config.rope_scaling.factor == 2.0


@pytest.mark.parametrize("accept", ["depth", [3], 5])
def test_what_is_no_list_of_settings(accept, hf_copy):
    with pytest.raises(InputError, match="^accept "):
        so.load(hf_copy("gpt2"), accept=accept)


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data, name):
    file = shared_data / "configs" / name / "config.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    config = read_config(json.loads(file.read_text()), name).config
    assert tuple(getattr(config, field) for field in FIELDS) == REAL[name]


def test_names_by_which_nothing_is_computed():
    plain = fixture("gpt2")
    odd = plain | {
        "_anything": "from there",
        "special_token_id": 7,
        "n_special": 0,
        "predict_special_tokens": True,
        "unsloth_version": "2024.9",
        "transformers.js_config": {"a": 1},
        "quantization_config": {"quant_method": "fp8"},
    }
    assert read_config(odd, "odd") == read_config(plain, "plain")
    with pytest.raises(InputError, match="quantization_config"):  # no way that we know
        read_config(plain | {"quantization_config": {"quant_method": "new"}}, "c")


def test_a_class_stands_for_a_missing_type():
    fields = fixture("llama-mha")
    assert read_config(fields | {"model_type": None}, "c") == read_config(fields, "c")
    with pytest.raises(InputError, match=r"architecture 'NewForCausalLM' is unknown"):
        read_config(fields | {"model_type": None, "architectures": ["NewForCausalLM"]}, "c")


def test_the_text_model_inside_another():
    text = fixture("llama-mha")
    whole = {"model_type": "llava", "vision_config": {"hidden_size": 8}, "text_config": text}
    assert read_config(whole, "c") == read_config(text, "c")
    with pytest.raises(InputError, match="text_config.vocab_size is 'x'"):
        read_config(whole | {"text_config": text | {"vocab_size": "x"}}, "c")


def test_accepted_settings(hf_copy, tmp_path):
    """What could be mathematics stops the load until it is accepted by name; the model, and what it is converted to, record it."""
    directory = hf_copy("llama-mha")
    file = directory / "config.json"
    fields = json.loads(file.read_text())
    scaling = fields["rope_parameters"] | {"mscale": 2.0}
    file.write_text(json.dumps(fields | {"new_switch": 3, "rope_parameters": scaling}))
    with pytest.raises(InputError, match=r"mscale=2.0"):
        so.load(directory)
    with pytest.raises(InputError, match=r"new_switch=3"):
        so.load(directory, accept=("rope_parameters.mscale",))
    names = ("rope_parameters.mscale", "new_switch", "not_there")
    lm = so.load(directory, accept=names)
    assert lm.accepted == ("rope_parameters.mscale", "new_switch")
    assert [n for n in lm.notes if "no unknown setting not_there to accept" in n]  # misspelt?
    checkpoint.save(tmp_path / "converted", lm.config, lm.source, "float32", accepted=lm.accepted)
    assert so.load(tmp_path / "converted").accepted == lm.accepted
    # what is computed with cannot be switched off
    file.write_text(json.dumps(fields | {"hidden_act": "gelu"}))
    with pytest.raises(InputError, match="hidden_act = 'gelu' is not implemented"):
        so.load(directory, accept=("hidden_act",))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"odd": 1.5}, "not handled: rope_parameters.odd=1.5"),
        (
            {"sliding_attention": "x"},
            "rope_parameters.sliding_attention is 'x'; expected an object",
        ),
        ({"sliding_attention": {"odd": 2}}, "not handled: rope_parameters.sliding_attention.odd=2"),
    ],
)
def test_rotary_settings_by_kind_of_layer(parts, says):
    config = CASES["gemma3"]
    whole = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    fields = config.settings | {"model_type": config.kind, "rms_norm_eps": 1e-6}
    read_config(fields | {"rope_parameters": whole}, "c")
    with pytest.raises(InputError, match=says):
        read_config(fields | {"rope_parameters": whole | parts}, "c")
    if "odd" in parts:
        _, _, accepted = read_config(
            fields | {"rope_parameters": whole | parts}, "c", ["rope_parameters.odd"]
        )
        assert accepted == ("rope_parameters.odd",)


def test_what_is_odd_about_a_config_is_said_and_no_reason_to_refuse_it(
    hf_copy, tmp_path, monkeypatch, capsys
):
    """Ids without an embedding (checkpoints whose added tokens have none), and plain weights beside a setting that says they are packed."""
    model, out = hf_copy("llama-mha"), tmp_path / "out"
    fields = fixture("llama-mha")
    size = fields["vocab_size"]
    plain = so.load(model)
    odd = {"bos_token_id": size, "eos_token_id": [1, size + 5], "pad_token_id": size + 9}
    odd["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (model / "config.json").write_text(json.dumps(fields | odd))
    notes = (
        f"config.json gives {size} as bos_token_id, beyond the vocabulary of {size:,}: taken for none.",
        f"config.json gives {size + 5} as eos_token_id, beyond the vocabulary of {size:,}: taken for none.",
        "config.json says that weights are quantised ('awq'); the stored ones are float32 and are computed with as they are.",
    )
    lm = so.load(model)
    assert lm.notes == notes and plain.notes == () and lm.config == plain.config
    assert call(monkeypatch, convert.main, "--src", model, "--out", out) == 0
    said = capsys.readouterr()
    assert " ".join(said.out.split()).endswith(" ".join(notes)) and said.err == ""
    assert json.loads((out / "model.json").read_text())["bos_token_id"] is None
    # -1 is how some say "none"
    (model / "config.json").write_text(json.dumps(fields | {"bos_token_id": -1}))
    assert so.load(model).notes == ()
