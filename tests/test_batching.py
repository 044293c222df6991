"""How sequences are cut into steps: few steps, little that is computed in vain, and no trace of it in a result."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import engine
from sysout_jax.engine import Stream, default_batch_size
from tests.models.random_models import random_model


@pytest.mark.parametrize("length", [16, 512, 5000])
def test_steps_are_few_and_filled(length):
    most = max(engine.STEP_TOKENS // length, 1)
    for count in range(1, 300):
        size = default_batch_size(count, length)
        steps = -(-count // size)
        assert 1 <= size <= min(most, count)
        assert steps <= 2 * -(-count // most)
        assert steps * size - count < steps or steps == 1
        if count % most == 0:
            assert size == most


@pytest.mark.parametrize("count", [5, 7])
def test_what_fills_a_step_is_in_no_result(count, monkeypatch):
    """Seven sequences in steps of at most four: the copies that fill the last step are in no statistic, bit for bit."""
    lm = random_model("gpt2", 0)
    tokens = np.random.default_rng(1).integers(0, lm.config.vocab_size, (count, 12))
    monkeypatch.setattr(engine, "STEP_TOKENS", 4 * 12)
    filled = Stream(lm, tokens)
    assert len({len(batch) for batch in filled.batches}) == 1
    assert sum(map(len, filled.batches)) > count and len(filled.batches) == 2
    assert sum(map(len, filled.states())) == count
    assert filled.nll().shape == (count, 11) and filled.logits().shape[0] == count
    found = so.collect(lm, tokens, 3.0), so.perplexity(lm, tokens).value, so.capture(lm, tokens)
    one_by_one = [so.collect(lm.with_passes(batch_size=1), tokens, 3.0)]
    one_by_one.append(so.perplexity(lm.with_passes(batch_size=1), tokens).value)
    monkeypatch.setattr(engine, "STEP_TOKENS", 1)
    one_by_one.append(so.capture(lm, tokens))
    assert found[0].to_dict() == one_by_one[0].to_dict()
    assert found[1] == one_by_one[1]
    for got, want in zip(jax.tree.leaves(found[2]), jax.tree.leaves(one_by_one[2]), strict=True):
        np.testing.assert_array_equal(got, want)
