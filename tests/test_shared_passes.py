"""What observes a pass sees the same whether it is alone or shares the pass with others."""

from collections import Counter

import jax
import numpy as np

import sysout_jax as so
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.statistics.collect import STATISTICS, Collecting
from sysout_jax.testing import planted_llama
from tests.random_models import random_model

TOKENS = np.arange(24).reshape(2, 12)


class Marked:
    """Reads at each token of a layer what it is given there."""

    def __init__(self, lm):
        self.lm, self.taken = lm, []

    def observe(self, layer):
        return _read

    def extra(self, layer):
        return {"weight": (1 + layer) * np.arange(len(TOKENS), dtype=np.float32)}

    def take(self, layer, params, seen):
        assert params.keys() == self.lm.read(f"layer_{layer}").keys()
        self.taken.append(seen)


def _read(x_in, taps, extra):
    return {"x": x_in.sum((1, 2)) * extra["weight"]}


def test_observers_see_what_each_sees_alone():
    lm = random_model("llama-gqa", 0).with_passes(batch_size=1)
    alone, shared, stream = Marked(lm), Marked(lm), Stream(lm, TOKENS)
    Stream(lm, TOKENS).run([alone])
    collecting = Collecting(stream, 4.0)
    stream.run([shared, collecting])
    jax.tree.map(np.testing.assert_array_equal, alone.taken, shared.taken)
    plain, found = so.collect(lm, TOKENS, 4.0), collecting.stats()
    for name in STATISTICS:
        if name in plain.gathered:
            jax.tree.map(
                np.testing.assert_array_equal,
                vars(plain.gathered[name]),
                vars(found.gathered[name]),
            )


def test_the_likelihood_is_that_of_the_states_at_hand():
    """It is computed once for one state, and again after another layer, also of a copy that another model goes on with."""
    lm = random_model("llama-gqa", 0)
    stream = Stream(lm, TOKENS)
    seen = [stream.nll() for _ in stream.layers(observe_nothing)]
    assert len({nll.tobytes() for nll in seen}) == len(seen)
    assert stream.nll() is seen[-1]


def test_the_lifecycle_takes_two_passes_beside_its_statistics():
    """One follows outliers and finds waves; one, only where there are waves, asks what attention does with the tokens of all of them."""
    planted = planted_llama()
    layers = Counter()
    lm = planted.lm.with_passes(on_layer=lambda: layers.update(["layer"]))
    tokens = planted.tokens(2, 64, 0)
    report = so.lifecycle(lm, tokens, cause=False)
    assert report.found and report.waves.waves
    assert layers["layer"] == 3 * lm.num_layers
