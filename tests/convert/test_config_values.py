"""Every field of every config has a type and a range, whichever file it stands in; a message names the field, its value, and both."""

from __future__ import annotations

import json
import math

import pytest

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checks import Rule
from sysout_jax.config import RULES, config_to_dict
from sysout_jax.errors import InputError
from sysout_jax.families import config_from_dict, gpt2, reading
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from tests.families.cases import CASES as FAMILY_CASES
from tests.families.cases import OTHERS
from tests.parity_cases import FIXTURES

NAN, INF = math.nan, math.inf
NO_VALUE = ["", "8", "false", [], [8], {}, {"a": 1}, "x" * 10**6]
BAD = {
    "Whole": [*NO_VALUE, True, -1, 0, 4.0, 1e30, NAN, 2**31, 10**30, 10**100_000],
    "Real": [*NO_VALUE, True, -1, 0, 1e308, 10**400, NAN, INF, -INF],
    "Flag": [*NO_VALUE, 0, 1, 2, 0.0, NAN],
}
LLAMA_ONLY = {"attention_bias": "qkv_bias", "rope_theta": "rope_theta"}
ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
}


def fixture(case: str) -> dict:
    return json.loads((FIXTURES / case / "config.json").read_text())


def bad_values(rule: Rule) -> list:
    """Most rules refuse 0."""
    return [value for value in BAD[type(rule).__name__] if value != 0 or not rule.accepts(value)]


def assert_refused(fields: dict, name: str) -> None:
    with pytest.raises(InputError) as caught:
        read_config(fields, "dir/config.json")
    message = str(caught.value)
    assert message.startswith(f"dir/config.json: {name} is ") and "; expected " in message, message
    assert len(message) < 400 and message.isprintable()


@pytest.mark.parametrize(
    ("theirs", "ours"), [*((v, k) for k, v in reading.FIELDS.items()), ("rms_norm_eps", "norm_eps")]
)
def test_llama(theirs, ours):
    for value in bad_values(RULES[ours]):
        assert_refused(fixture("llama-mha") | {theirs: value}, theirs)


@pytest.mark.parametrize(("theirs", "ours"), LLAMA_ONLY.items())
def test_llama_only(theirs, ours):
    fields = fixture("llama-mha")
    del fields["rope_parameters"]
    for value in bad_values(RULES[ours]):
        assert_refused(fields | {theirs: value}, theirs)


@pytest.mark.parametrize("theirs", ["sliding_window"])
def test_mistral(theirs):
    for value in bad_values(RULES["context_length"]):
        assert_refused(fixture("mistral") | {theirs: value}, theirs)


@pytest.mark.parametrize("theirs", ROPE)
def test_rotary_scaling(theirs):
    fields = fixture("llama-llama3-rope")
    scaling = fields["rope_parameters"]
    for value in bad_values(RULES[ROPE[theirs]]):
        name = f"rope_parameters.{theirs}"
        assert_refused(fields | {"rope_parameters": scaling | {theirs: value}}, name)
    four = {k: v for k, v in fields.items() if k != "rope_parameters"}
    assert_refused(four | {"rope_scaling": scaling | {theirs: NAN}}, f"rope_scaling.{theirs}")


#: What no setting that is computed with may be, in any family.
NEVER = ["", "8", "false", "x" * 10**6, [], [8], {"a": 1}, -1, 1e30, NAN, INF, -INF, 1e308, 10**30]
UNREAD = {"pad_token_id", "model_max_length"}
MORE = {"mpt": {"norm_type": "layernorm"}}


@pytest.mark.parametrize("name", FAMILY_CASES | OTHERS)
def test_every_family(name):
    case = (FAMILY_CASES | OTHERS)[name]
    settings = case.settings | MORE.get(name, {})
    damaged = [{field: value} for field in settings.keys() - UNREAD for value in NEVER]
    for outer, inner in settings.items():
        if isinstance(inner, dict):
            damaged += [{outer: inner | {field: value}} for field in inner for value in NEVER]
    for change in damaged:
        with pytest.raises(InputError) as caught:
            read_config({"model_type": case.kind, **settings, **change}, "c")
        message = str(caught.value)
        assert message.startswith("c: ") and message.isprintable() and len(message) < 600, change


@pytest.mark.parametrize("kinds", [[[1], "x"], [{}, {}], [None, 1], ["full_attention"] * 3, "x", 2])
def test_kinds_of_layers_of_any_type(kinds):
    fields = {**FAMILY_CASES["qwen2"].settings, "model_type": "qwen2", "layer_types": kinds}
    assert_refused(fields, "layer_types")


def test_a_table_of_positions_that_no_array_holds():
    """OPT's has two rows more than its context."""
    fields = {**FAMILY_CASES["opt"].settings, "model_type": "opt"}
    for context in (2**31 - 1, 2**31 - 2):
        assert_refused(fields | {"max_position_embeddings": context}, "context_length")
    read_config(fields | {"max_position_embeddings": 2**31 - 3}, "c")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_theta is 1"),
        (
            {
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.0],
                    "long_factor": [1.0, 1.0],
                    "original_max_position_embeddings": 1,
                }
            },
            "original context of longrope is 1",
        ),
    ],
)
def test_rotary_settings_that_would_divide_by_zero(setting, says):
    fields = fixture("llama-mha")
    del fields["rope_parameters"]
    with pytest.raises(InputError, match=f"^c: .*{says}; expected"):
        read_config(fields | setting, "c")


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_that_are_no_object(name):
    fields = fixture("llama-mha")
    del fields["rope_parameters"]
    for value in ("linear", [1], [["factor", 2]], 3, True):
        assert_refused(fields | {name: value}, name)
    for kind in (3, ["linear"], {}, True, "x" * 10**6):
        with pytest.raises(InputError, match="^c: rope scaling .* is not implemented") as caught:
            read_config(fields | {name: {"rope_type": kind, "factor": 2.0}}, "c")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("theirs", "ours"), [*((v, k) for k, v in gpt2.FIELDS.items()), ("n_inner", "d_ff")]
)
def test_gpt2(theirs, ours):
    for value in bad_values(RULES[ours]):
        assert_refused(fixture("gpt2") | {theirs: value}, theirs)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    {
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_embd": "d_model",
        "block_size": "context_length",
        "vocab_size": "vocab_size",
        "bias": "bias",
    }.items(),
)
def test_nanogpt(theirs, ours):
    args = {"n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 64, "vocab_size": 32}
    for value in bad_values(RULES[ours]):
        assert_refused(args | {theirs: value}, theirs)


@pytest.mark.parametrize("value", [1, "true", [True], {}])
def test_a_switch_is_no_number(value):
    with pytest.raises(InputError, match="scale_attn_weights = .* is not implemented"):
        read_config(fixture("gpt2") | {"scale_attn_weights": value}, "c")


@pytest.mark.parametrize("field", ["model_type", "hidden_act"])
@pytest.mark.parametrize("value", [[], ["llama"], {}, 3, True, "x" * 10**6, "\x1b[2J"])
def test_words_of_any_kind(field, value):
    for case in ("llama-mha", "gpt2"):
        with pytest.raises(InputError) as caught:
            read_config(fixture(case) | {field: value, "architectures": ["\x1b" * 10**6]}, "c")
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_unknown_settings_are_listed_shortly():
    strange = {f"\x1b[{i}m" + "k" * 10**5: "v" * 10**5 for i in range(50)}
    with pytest.raises(InputError, match="settings that are not handled") as caught:
        read_config(fixture("gpt2") | strange, "c")
    assert len(str(caught.value)) < 4000 and str(caught.value).isprintable()


# --- our own model.json

LLAMA = LlamaConfig(
    vocab_size=9,
    context_length=8,
    d_model=8,
    d_ff=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
)
GPT2 = Gpt2Config(vocab_size=9, context_length=8, d_model=8, d_ff=8, num_layers=1, num_heads=2)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config.family)
def test_our_own(config):
    fields = config_to_dict(config)
    assert config_from_dict(fields) == config
    for name, rule in RULES.items():
        for value in bad_values(rule) if name in fields and type(rule).__name__ in BAD else ():
            with pytest.raises(InputError, match=f"^config field {name} is .*; expected "):
                config_from_dict(fields | {name: value})
    for name in (
        "attention",
        "sigmoid_bias",
        "family",
        *(["activation"] if config is GPT2 else []),
    ):
        for value in (None, [], {}, 3, True, "x", "x" * 10**6):
            with pytest.raises(InputError, match=f"^config field {name} is ") as caught:
                config_from_dict(fields | {name: value})
            assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value", [[], "x", 3, {}, {"kind": "linear"}, {"kind": "x", "factor": 2.0}, {"odd": 1}]
)
def test_our_own_rotary_scaling(value):
    with pytest.raises(InputError):
        config_from_dict(config_to_dict(LLAMA) | {"rope_scaling": value})
    for name in ("factor", "low_freq_factor", "high_freq_factor", "original_context"):
        scaling = {"kind": "llama3", "factor": 8.0}
        for bad in bad_values(RULES[name]):
            with pytest.raises(InputError, match=f"^config field rope_scaling.{name} is "):
                config_from_dict(config_to_dict(LLAMA) | {"rope_scaling": scaling | {name: bad}})


@pytest.mark.parametrize("fields", [None, [], "x", {}, {"family": "llama"}])
def test_what_is_no_config(fields):
    with pytest.raises(InputError):
        config_from_dict(fields)


def test_fields_that_are_missing_or_unknown_are_named():
    fields = config_to_dict(GPT2)
    with pytest.raises(InputError, match="misses d_ff, num_heads"):
        config_from_dict({k: v for k, v in fields.items() if k not in ("d_ff", "num_heads")})
    with pytest.raises(InputError, match="does not know head_dim, odd"):
        config_from_dict(fields | {"odd": 1, "head_dim": 4})


def test_sizes_that_are_too_large_together():
    """Each is possible, their product is no axis of an array."""
    with pytest.raises(InputError, match="num_heads 65536 times head_dim 65536"):
        config_from_dict(
            config_to_dict(LLAMA) | {"num_heads": 2**16, "num_kv_heads": 2**16, "head_dim": 2**16}
        )
