"""What a caller gets wrong in Python is an InputError of one line, in every public function, before anything is computed."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.compress.methods import Settings
from sysout_jax.data.text import text_windows
from sysout_jax.data.tokenizers import byte_tokenizer
from tests.random_models import random_model

ANALYSES = {
    "collect": so.collect,
    "lifecycle": so.lifecycle,
    "consistency": so.consistency,
    "existence": so.existence,
    "positions": so.positions,
    "by_length": so.by_length,
    "intervene": so.intervene,
    "census": so.census,
    "variant_profile": so.variant_profile,
    "compression": so.compression,
    "absorb": so.absorb,
}
READERS = ANALYSES | {"capture": so.capture, "perplexity": so.perplexity}
TOKENS = np.zeros((2, 4), int)


@pytest.fixture(scope="module")
def lm() -> so.LanguageModel:
    lm = random_model("gpt2", 0, num_layers=1)
    lm.tokenizer = byte_tokenizer()
    return lm


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(so.InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1200
    return message


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
@pytest.mark.parametrize("model", ["path/to/model", None, 3, {}, so.LanguageModel])
def test_what_is_no_model(call, model):
    assert "expected a model" in refusal(call, model, TOKENS)


@pytest.mark.parametrize("call", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "tokens",
    [
        [[1, 2], [3]],
        "text",
        None,
        3,
        [1, 2, 3],
        [["a", "b"]],
        [[1.0, 2.0]],
        [[True, False]],
        [[]],
        [[None, 1]],
        {"a": 1},
        [[10**30, 1]],
        [[-1, 1]],
        [[2**40, 1]],
        [[61, 1]],
        np.zeros((1, 2, 3), int),
        "x" * 10**6,
    ],
    ids=lambda tokens: str(tokens)[:20].replace("\n", ""),
)
def test_what_are_no_tokens(lm, call, tokens):
    assert "token" in refusal(call, lm, tokens)


@pytest.mark.parametrize("which", ["tokens", "calibration_tokens"])
def test_tokens_beside_others_to_calibrate_on(lm, which):
    given = {"tokens": TOKENS, "calibration_tokens": TOKENS}
    for bad in ([[1, 2], [3]], 3):
        assert "token" in refusal(so.absorb, lm, **given | {which: bad})


@pytest.mark.parametrize("call", ANALYSES.values(), ids=ANALYSES)
@pytest.mark.parametrize(
    "tau", [None, math.nan, math.inf, -1, 0, 0.0, 1e-300, 1e300, "1000", True, [1000.0], 1j]
)
def test_thresholds(lm, call, tau):
    message = refusal(call, lm, TOKENS, tau=tau)
    assert message.startswith("tau is ") and "expected a finite number" in message


@pytest.mark.parametrize("tau", [5, 5.0, np.float32(5), np.int64(5), jnp.float32(5)])
def test_a_threshold_may_be_any_number(lm, tau):
    assert so.collect(lm, TOKENS, tau).tau == 5.0


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", math.nan, True, [2]])
def test_batch_sizes(lm, size):
    with pytest.raises(so.InputError, match="batch_size is "):
        lm.with_passes(batch_size=size)


def test_progress_counts_the_layers_of_all_passes(lm):
    layers: list[None] = []
    counting = lm.with_passes(batch_size=np.int64(1), on_layer=lambda: layers.append(None))
    so.perplexity(counting, TOKENS)
    assert len(layers) == lm.num_layers
    so.existence(counting, TOKENS)
    assert len(layers) == 3 * lm.num_layers


@pytest.mark.parametrize("call", [so.lifecycle, so.consistency, so.intervene, so.compression])
@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, True, 2**64])
def test_seeds(lm, call, seed):
    assert "seed is " in refusal(call, lm, TOKENS, seed=seed)


@pytest.mark.parametrize("call", [so.intervene, so.compression])
@pytest.mark.parametrize("seeds", [0, -1, 1.5, "3", None, True])
def test_numbers_of_seeds(lm, call, seeds):
    assert "seeds is " in refusal(call, lm, TOKENS, seeds=seeds)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (so.capture, "names"),
        (so.intervene, "what"),
        (so.intervene, "where"),
        (so.compression, "methods"),
        (so.compression, "attribute"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize(
    "names", ["x_down", "int8", None, 3, [3], [None], [["h"]], ["nonsense"], ["x" * 10**6]]
)
def test_lists_of_names(lm, call, argument, names):
    """A word where a list of words is expected was read letter by letter."""
    message = refusal(call, lm, TOKENS, **{argument: names})
    assert message.startswith(f"{argument} ")


@pytest.mark.parametrize("argument", ["what", "where", "methods"])
def test_empty_lists(lm, argument):
    call = so.compression if argument == "methods" else so.intervene
    assert argument in refusal(call, lm, TOKENS, **{argument: ()})


def test_a_tap_that_this_model_does_not_record(lm):
    assert "does not record gate" in refusal(so.capture, lm, TOKENS, ("gate",))


@pytest.mark.parametrize("sparsities", [0.5, "0.5", [], [1.5], [-0.1], [math.nan], ["0.5"], [None]])
def test_sparsities(lm, sparsities):
    assert "sparsities" in refusal(so.compression, lm, TOKENS, sparsities=sparsities)


def test_a_method_whose_error_cannot_be_attributed(lm):
    assert "attribute" in refusal(so.compression, lm, TOKENS, attribute=["prune_model"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("group_size", bad) for bad in (0, -1, 1.5, "64", None)),
        *(("alpha", bad) for bad in (-0.1, 1.1, math.nan, "0.5", None)),
        *(("sparsity", bad) for bad in (-0.1, 1.1, math.nan, "0.5", None)),
        *(("embeddings", bad) for bad in (1, "no", None)),
    ],
)
def test_settings_of_methods(field, value):
    assert f"{field} is " in refusal(Settings, **{field: value})


@pytest.mark.parametrize("lengths", [3, "3", [], [0], [-1], [1.5], ["2"], [None]])
def test_lengths(lm, lengths):
    if lengths != []:
        assert "lengths" in refusal(so.by_length, lm, TOKENS, lengths=lengths)


@pytest.mark.parametrize("sentences", ["One sentence.", None, 3, [3], [None]])
def test_sentences(lm, sentences):
    assert "sentences" in refusal(so.by_length, lm, TOKENS, sentences=sentences)


@pytest.mark.parametrize("taps", [None, "h", [], 3, {"h": None}, {"h": np.zeros(3)}, {"h": "x"}])
def test_taps_of_the_monitor(taps):
    assert "taps" in refusal(so.monitor_layer, taps)


@pytest.mark.parametrize("given", ["stats", "report", 3, {}])
def test_results_of_another_kind(lm, given):
    for call in (so.lifecycle, so.existence, so.consistency, so.variant_profile):
        assert "stats is " in refusal(call, lm, TOKENS, stats=given)
    assert "report is " in refusal(so.intervene, lm, TOKENS, report=given)
    for call in (so.by_length, so.positions):
        assert "classes is " in refusal(call, lm, TOKENS, classes=given)


def test_tokens_are_the_windows_that_commands_cut(lm):
    text = "Summer is warm. " * 20
    found = so.tokens(lm, text, num_seqs=3, seq_len=16, bos=True)
    assert found.shape == (3, 16) and found.dtype == np.int32
    assert (found == text_windows(lm.tokenizer, text, 3, 16, True)).all()
    assert so.tokens(lm, text).shape[1] == min(1024, lm.config.context_length)
    for arguments, what in (
        ((text, 0), "num_seqs is 0"),
        ((text, 1, 1.5), "seq_len is 1.5"),
        ((b"x",), "text is "),
        ((text, 1, 8, "yes"), "bos is 'yes'"),
    ):
        with pytest.raises(so.InputError, match=what):
            so.tokens(lm, *arguments)
    with pytest.raises(so.InputError, match="has no tokenizer"):
        so.tokens(dataclasses.replace(lm, tokenizer=None), text)
