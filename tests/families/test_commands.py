"""Every analysis command ends with status 0 on a model of every family; that a family takes no prefix is said in one line."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from sysout_jax.checkpoints import checkpoint
from sysout_jax.compress.absorption import refusal
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.weights import InMemory
from tests.analyze.command import call
from tests.families.test_families import EACH, config_of
from tests.random_models import random_params

FEW = ("--num-seqs", 2, "--seq-len", 24)
TAU = 4  # what a random model reaches


@pytest.mark.endurance
@pytest.mark.parametrize("name", EACH)
def test_every_command(name, tmp_path, monkeypatch, capsys):
    """`all` runs eight of them; those that it does not run are called beside it."""
    model, out = tmp_path / "model", tmp_path / "out"
    config = dataclasses.replace(config_of(name), vocab_size=300)
    weights = InMemory(random_params(config, 0, std=0.3, scale=1.0))
    checkpoint.save(model, config, weights, "float32", byte_tokenizer(), bos_id=256)

    def run(command: str, *flags) -> int:
        main = importlib.import_module(f"analyze.{command}").main
        return call(monkeypatch, main, "--ckpt", model, *flags, "--out", out / command)

    assert run("all", *FEW, "--tau", TAU) == 0, capsys.readouterr()
    assert run("census", *FEW, "--tau", TAU, "--count", 1) == 0, capsys.readouterr()
    takes_no_prefix = refusal(config) is not None
    status = run("absorb", *FEW, "--tau", TAU, "--longest", 1)
    assert status == (2 if takes_no_prefix else 0), capsys.readouterr()
