"""What a config.json leaves out, or says to be null, is what transformers takes it for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError
from sysout_jax.families import FAMILIES, LAYOUTS
from tests.families.cases import VOCAB, Case

#: Wide enough for the default numbers of key heads, deep enough for the layers that have windows by default.
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 512,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "max_position_embeddings": 64,
}
_NEW = _SIZES | {"intermediate_size": 24}
_GPT = {"vocab_size": VOCAB, "n_embd": 512, "n_layer": 2, "n_head": 4, "n_positions": 64}
_WIDTHS = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 16}
OWN = {
    "gpt2": _GPT,
    "gptj": _GPT,
    "mpt": {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "opt": _SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 512},
    "falcon": _SIZES,
    "qwen2_moe": _NEW | _WIDTHS,
    "qwen3_moe": _NEW | {"moe_intermediate_size": 8},
}
#: Layouts that transformers has no class for: nothing to hold their defaults against.
UNKNOWN = {"nanogpt", "internlm", "mimo", "phi-msft", "RefinedWebModel", "RefinedWeb", "internlm2", "minicpm", "baichuan"}  # fmt: skip
#: Settings that change what the others are when they are left out.
MORE: dict[str, dict[str, Any]] = {
    "use_sliding_window": {"use_sliding_window": True},
    "new_decoder_architecture": {"new_decoder_architecture": True},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}
CASES = {kind: Case(kind, OWN.get(kind, _NEW)) for kind in LAYOUTS if kind not in UNKNOWN}
CASES |= {
    f"{kind}-{more}": Case(kind, CASES[kind].settings | MORE[more])
    for more, kinds in (
        ("use_sliding_window", ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe")),
        ("new_decoder_architecture", ("falcon",)),
        ("linear", ("llama", "mixtral", "cohere", "gemma2", "gpt_oss", "ministral3", "olmo3")),
    )
    for kind in kinds
}


def whole(case: Case, **changes: Any) -> dict[str, Any]:
    """All settings, as transformers writes them."""
    transformers = pytest.importorskip("transformers")
    settings = copy.deepcopy(case.settings) | changes
    return transformers.AutoConfig.for_model(case.kind, **settings).to_dict()


def read(fields: dict[str, Any]) -> ModelConfig:
    return read_config(copy.deepcopy(fields), "c").config


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_what_is_absent(name):
    """All but sizes left out at once."""
    case = CASES[name]
    assert read({"model_type": case.kind, **case.settings}) == read(whole(case))


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_what_is_null(name):
    """One setting after the other, where transformers' class takes null and we read what it writes then."""
    case = CASES[name]
    for key in whole(case).keys() - case.settings.keys() - {"model_type"}:
        try:
            want = read(whole(case, **{key: None}))
        except Exception:  # of a dozen kinds: null is not allowed there
            continue
        assert read({"model_type": case.kind, **case.settings, key: None}) == want, key


@pytest.mark.parity
def test_every_layout_is_held_against_its_class():
    transformers = pytest.importorskip("transformers")
    assert not UNKNOWN & set(transformers.CONFIG_MAPPING)


def settings(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, **OWN.get(kind, _NEW), **changes}


@pytest.mark.parametrize(
    ("kind", "ours", "absent"),
    [
        ("gemma2", "softcap", 50.0),
        ("gemma2", "final_softcap", 30.0),
        ("gemma2", "sliding_window", 4096),
        ("gemma3_text", "sliding_window", 4096),
        ("olmo3", "sliding_window", 4096),
        ("gpt_oss", "sliding_window", 128),
        ("mistral", "sliding_window", 4096),
    ],
)
def test_absent_and_null(kind, ours, absent):
    """Without transformers: null switches off, as these settings' defaults do not."""
    theirs = {"softcap": "attn_logit_softcapping", "final_softcap": "final_logit_softcapping"}
    assert getattr(read(settings(kind)), ours) == absent
    off = read(settings(kind, **{theirs.get(ours, ours): None}))
    assert getattr(off, ours) is None


@pytest.mark.parametrize(("kind", "theta"), [("mixtral", 1e6), ("cohere", 5e5), ("llama", 1e4)])
def test_absent_base_of_positions(kind, theta):
    assert read(settings(kind)).rope_theta == theta


def test_gpt_oss_without_scaled_positions_says_so():
    """Neither an absent nor a null scaling is none there."""
    assert read(settings("gpt_oss", rope_scaling=None)).rope_scaling.factor == 32.0
    plain = read(settings("gpt_oss", rope_scaling={"rope_type": "default"}))
    assert plain.rope_scaling is None
    written = FAMILIES["gpt_oss"].export.fields(plain)
    assert read(written) == plain


def test_a_context_inside_the_positions_must_be_the_models():
    inside = {"rope_type": "default", "max_position_embeddings": 64}
    assert read(settings("llama", rope_parameters=inside)) == read(settings("llama"))
    inside["max_position_embeddings"] = 32
    with pytest.raises(InputError, match="max_position_embeddings = 32 is not implemented"):
        read(settings("llama", rope_parameters=inside))
