"""Runs that start from a checkpoint: a model with a prefix absorbed goes on training as it is."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.checkpoints import checkpoint
from sysout_jax.compress.absorption import absorbed, prefix_keys
from sysout_jax.data.batches import batches
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.training.loop import fit
from sysout_jax.training.metrics_file import read_metrics
from sysout_jax.weights import InMemory
from tests.random_models import random_params
from train import settings
from train.__main__ import Command

pytestmark = pytest.mark.slow


@pytest.fixture
def clean(config, tmp_path) -> so.LanguageModel:
    """An absorbed model, also on disk in `clean`."""
    lm = so.LanguageModel(config.model, InMemory(random_params(config.model, 0, std=0.1)))
    made = absorbed(lm, prefix_keys(lm, (5, 9, 2)))
    checkpoint.save(tmp_path / "clean", made.config, made.source, "float32")
    return made


def test_training_goes_on_from_an_absorbed_model(config, clean, tmp_path):
    config = dataclasses.replace(
        config, model=clean.config, init=tmp_path / "clean", seq_len=12, steps=4
    )
    assert fit(config, tmp_path / "run").status == "finished"
    losses = [r["loss"] for r in read_metrics(tmp_path / "run") if "loss" in r]
    # the loss of the first step is that of the weights that it starts from
    vocabulary = config.model.vocab_size
    first = next(batches(config.data, "train", 8, 12, seed=config.seed, vocab_size=vocabulary))
    stream = Stream(clean, np.asarray(first).reshape(8, 13))
    for _ in stream.layers(observe_nothing):
        pass
    assert losses[0] == pytest.approx(stream.nll().mean(), rel=1e-5)
    assert losses[-1] < losses[0]
    again = so.load(tmp_path / "run")
    assert again.config == clean.config
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), again.params, clean.params)
    assert min(jax.tree.leaves(moved)) > 0
    # resumed, it goes on from its own checkpoint, bit for bit as if it had never stopped
    config = dataclasses.replace(config, steps=5)
    ends = [fit(config, tmp_path / place).step for place in ("run", "whole")]
    assert ends == [5, 5]
    resumed, whole = (so.load(tmp_path / place).params for place in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_another_model_is_refused(config, clean, tmp_path):
    config = dataclasses.replace(config, init=tmp_path / "clean")
    with pytest.raises(so.InputError, match="holds another model .*extra_keys: 3 there, 0 here"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_takes_the_model_of_the_checkpoint(config_file, clean, tmp_path):
    flags = ["--config", str(config_file), "--init", str(tmp_path / "clean"), "--steps", "3"]
    made = settings.parse(
        Command, "train", None, [*flags, "--workdir", "run"], workdir=tmp_path / "run"
    ).settings
    assert (made.model, made.init, made.seq_len) == (clean.config, tmp_path / "clean", 13)
