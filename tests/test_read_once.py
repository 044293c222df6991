"""A model of which a study keeps the weights gives what it gave, reads the source once and lets nobody write into what it keeps."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import language_model
from sysout_jax.weights import ReadOnce
from tests.random_models import random_model

TOKENS = np.arange(24).reshape(2, 12)


class Counting:
    """A source that lies on disk, as far as anyone can see: fresh arrays at every reading."""

    def __init__(self, base):
        self.base, self.readings = base, Counter()

    def read(self, group, dtype):
        self.readings[group] += 1

        def fresh(tree):
            return {k: fresh(v) if isinstance(v, dict) else np.array(v) for k, v in tree.items()}

        return fresh(self.base.read(group, dtype))


@pytest.fixture
def lm():
    made = random_model("llama-gqa", 0)
    return dataclasses.replace(made, source=Counting(made.source))


def test_every_group_is_read_once(lm):
    once = lm.reading_once()
    found = [so.perplexity(once, TOKENS).value for _ in range(3)]
    assert set(lm.source.readings.values()) == {1}
    assert found == [so.perplexity(lm, TOKENS).value] * 3
    assert once.reading_once() is once


def test_edits_see_and_change_only_their_own_copy(lm):
    once = lm.reading_once()
    halved = once.with_edits({"layer_0": lambda params: {**params, "mlp": _halved(params["mlp"])}})
    before = so.perplexity(once, TOKENS).value
    assert so.perplexity(halved, TOKENS).value != before
    assert so.perplexity(once, TOKENS).value == before
    with pytest.raises(ValueError, match="read-only"):
        once.source.read("layer_0", "float32")["mlp"]["down_proj"]["kernel"][0] = 0


def test_another_dtype_is_read_anew(lm):
    once = lm.reading_once()
    assert once.source.read("embed", "float32")["embedding"].dtype == np.float32
    assert once.source.read("embed", "float16")["embedding"].dtype == np.float16
    assert once.source.read("embed", "float32")["embedding"].dtype == np.float32
    assert lm.source.readings["embed"] == 2


def test_a_large_model_is_read_layer_by_layer(lm, monkeypatch):
    monkeypatch.setattr(language_model, "MOST_HELD", 1000)
    assert lm.reading_once() is lm
    monkeypatch.undo()
    assert isinstance(lm.reading_once().source, ReadOnce)


def test_a_study_of_many_passes_reads_once(lm):
    so.compression(lm, TOKENS, methods=("w8_channel", "w8_tensor", "w4_group"))
    assert set(lm.source.readings.values()) == {1}


def _halved(tree):
    return {k: _halved(v) if isinstance(v, dict) else v / 2 for k, v in tree.items()}
