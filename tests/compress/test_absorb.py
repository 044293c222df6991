"""A model with a prefix absorbed against the original on [prefix, text]: the same numbers, whatever the family."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import weights
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.compress.absorption import absorbed, prefix_keys, refusal
from sysout_jax.config import ModelConfig
from sysout_jax.models import build
from sysout_jax.weights import InMemory
from tests.families.cases import CASES
from tests.random_models import random_params

ROOT = Path(__file__).parents[2]
PREFIX = (5, 0, 7)
T = 20  # windows of the cases are of 6
REFUSED = {"ministral3", "phi3-longrope", "phi3-longrope-long", "qwen2-dynamic"}
#: Learned positions, groups of queries with biases, ALiBi, windows; with time also plain rotary, an offset, parallel blocks, learned sinks.
USUAL = ("gpt2", "qwen2", "mpt", "mistral-window")
LATER = ("llama", "opt", "phi", "gpt_oss")
FAMILIES = [
    *USUAL,
    *(pytest.param(name, marks=pytest.mark.slow) for name in LATER),
    *(
        pytest.param(name, marks=pytest.mark.endurance)
        for name in CASES
        if name not in {*USUAL, *LATER, *REFUSED}
    ),
]


def config_of(name: str) -> ModelConfig:
    case = CASES[name]
    return read_config({"model_type": case.kind, **case.settings}, name).config


def model(name: str, dtype: str = "float32") -> so.LanguageModel:
    config = config_of(name)
    params = random_params(config, 3, std=0.3)
    return so.LanguageModel(config, InMemory(params), dtype=dtype, name=name)


def both(lm, prefix, length=T, rows=2):
    """Logits (N, T, V) of the original after the prefix, and of the absorbed model on the text alone."""
    text = np.random.default_rng(1).integers(0, lm.config.vocab_size, (rows, length))
    whole = np.concatenate([np.tile(prefix, (rows, 1)), text], axis=1)
    original, _ = so.capture(lm, whole, ())
    alone, _ = so.capture(absorbed(lm, prefix_keys(lm, prefix)), text, ())
    return [np.asarray(logits, np.float32) for logits in (original[:, len(prefix) :], alone)]


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_original_after_the_prefix(name):
    original, alone = both(model(name), PREFIX)
    np.testing.assert_allclose(alone, original, atol=1e-4)


@pytest.mark.parametrize(("name", "prefix", "length"), [("llama", PREFIX, 1), ("mpt", (5,), T)])
def test_one_token_of_text_or_of_prefix(name, prefix, length):
    original, alone = both(model(name), prefix, length, rows=1)
    np.testing.assert_allclose(alone, original, atol=1e-4)
    other, _ = both(model(name), tuple(t + 1 for t in prefix), length, rows=1)
    assert np.abs(other - alone).max() > 0.01  # the prefix matters


def test_bfloat16_to_its_own_rounding():
    """Keys are rounded once more after they are turned: 2^-8 of logits of this size, a few times over."""
    original, alone = both(model("llama", "bfloat16"), PREFIX)
    exact, _ = both(model("llama"), PREFIX)
    own = np.abs(original - exact).max()
    assert np.abs(alone - original).max() <= 2 * own
    assert own < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("name", ["ministral3", "phi3-longrope"])
def test_refuses_positions_that_no_constant_holds(name):
    assert refusal(config_of(name))
    with pytest.raises(so.InputError, match="no prefix can be absorbed, its"):
        prefix_keys(model(name), PREFIX)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ((), "has no token"),
        ((99,), "vocabulary"),
        ((1,) * 64, "leaves nothing of the model's context"),
    ],
)
def test_refuses_what_is_no_prefix(prefix, said):
    with pytest.raises(so.InputError, match=said):
        prefix_keys(model("llama"), prefix)


def test_refuses_another_attention():
    lm = model("llama")
    again = absorbed(lm, prefix_keys(lm, PREFIX))
    with pytest.raises(so.InputError, match="its attention is attention_bias, not default"):
        prefix_keys(again, PREFIX)


def test_is_saved_and_loads_again(tmp_path):
    lm = model("gpt2")
    clean = absorbed(lm, prefix_keys(lm, PREFIX))
    checkpoint.save(tmp_path / "clean", clean.config, clean.source, "float32")
    again = so.load(tmp_path / "clean")
    assert (again.config, again.config.extra_keys) == (clean.config, 3)
    assert again.config.context_length == lm.config.context_length - 3
    tokens = np.arange(12)[None]
    np.testing.assert_array_equal(so.capture(again, tokens)[0], so.capture(clean, tokens)[0])


SAVES_AND_DIES = """
import os, signal, sys
from pathlib import Path
from sysout_jax.checkpoints import checkpoint
from tests.compress.test_absorb import PREFIX, absorbed, model, prefix_keys

writes, step, out = checkpoint.write_group, int(sys.argv[1]), Path(sys.argv[2])

def write(*args):
    global step
    found = writes(*args)
    step -= 1
    if not step:
        os.kill(os.getpid(), signal.SIGKILL)
    return found

checkpoint.write_group = write
lm = model("gpt2")
clean = absorbed(lm, prefix_keys(lm, PREFIX))
checkpoint.save(out, clean.config, clean.source, "float32", beside={"prefix": b"x"})
"""


@pytest.mark.slow
def test_killed_while_it_is_saved_leaves_nothing_half(tmp_path):
    """SIGKILL with layers written and others not: no model is there, and the next one takes the place and clears the rest."""
    groups = len(weights.groups(model("gpt2").config))
    for step in (groups - 1, groups + 1):  # the second one is never reached
        arguments = [sys.executable, "-c", SAVES_AND_DIES, str(step), str(tmp_path / "clean")]
        ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        whole = step > groups
        assert ended.returncode == (0 if whole else -signal.SIGKILL), ended.stderr
        assert (tmp_path / "clean").exists() == whole
        assert len(list(tmp_path.iterdir())) == 1
    assert so.load(tmp_path / "clean").config.extra_keys == len(PREFIX)


def test_kernels_agree_where_keys_leave_a_window():
    """`fused` has the prefix in front; `blockwise` beside, masked by position."""
    lm = model("mistral-window")
    clean = absorbed(lm, prefix_keys(lm, PREFIX))
    x_BxTxD = jnp.asarray(
        np.random.default_rng(0).standard_normal((1, T, clean.config.d_model)), "f"
    )

    def block(config, kernel):
        layer = build(config, kernel=kernel).block(0)
        return jax.jit(layer.apply)({"params": clean.read("layer_0")}, x_BxTxD)

    beside, first = (block(clean.config, kernel) for kernel in ("blockwise", "fused"))
    np.testing.assert_allclose(first, beside, atol=1e-4)
    whole = dataclasses.replace(clean.config, sliding_window=None)
    assert jnp.abs(block(whole, "blockwise") - beside).max() > 0.01  # the window matters
