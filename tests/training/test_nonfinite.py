"""A run whose loss, gradient or validation loss is no longer finite ends with one line that says which, and can be gone on with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import pytest

from sysout_jax.errors import RunError
from sysout_jax.training import loop
from sysout_jax.training.checkpoints import Checkpoints
from sysout_jax.training.metrics_file import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def altered(monkeypatch) -> Callable[..., None]:
    """Lets `metrics(step)` change what a step reports, and `evaluate(step)` replace a validation loss."""

    def alter(metrics=lambda step: {}, evaluate=lambda step: None) -> None:
        make = loop.make_program

        def made(config, mesh):
            program = make(config, mesh)
            taken = {"step": 0}

            def train(state, batch):
                taken["step"] = int(state["step"]) + 1
                state, found = program.train(state, batch)
                return state, found | metrics(taken["step"])

            def evaluated(params, *batch):
                loss = evaluate(taken["step"])
                return program.evaluate(params, *batch) if loss is None else jnp.float32(loss)

            return dataclasses.replace(program, train=train, evaluate=evaluated)

        monkeypatch.setattr(loop, "make_program", made)

    return alter


def stopped(config, workdir) -> str:
    with pytest.raises(RunError) as caught:
        loop.fit(config, workdir)
    message = str(caught.value)
    assert message.isprintable()
    return message


def steps(config, workdir) -> list[int]:
    checkpoints = Checkpoints(workdir, config.keep)
    try:
        return checkpoints.steps()
    finally:
        checkpoints.close()


@pytest.mark.parametrize(
    ("loss", "bad", "good"),
    [(math.nan, 12, 8), (math.inf, 11, 8), (math.nan, 6, 4), (math.nan, 4, None)],
)
def test_validation_loss(loss, bad, good, config, tmp_path, altered, monkeypatch):
    """At the last step, at one between two saves, and before the first save; the next run goes on from the last good checkpoint."""
    config = dataclasses.replace(config, eval_every=4 if bad % 4 == 0 else bad)
    altered(evaluate=lambda step: loss if step >= bad else None)
    kept = "no checkpoint" if good is None else f"the last good checkpoint is of step {good}"
    line = stopped(config, tmp_path / "run")
    assert line.startswith(f"validation loss is {loss} at step {bad}: stopped, {kept}")
    assert steps(config, tmp_path / "run") == [s for s in (4, 8) if s <= (good or 0)]
    # the same again from there: nothing was lost, nothing is stuck
    assert stopped(config, tmp_path / "run") == line
    assert all(math.isfinite(r.get("val_loss", 0)) for r in read_metrics(tmp_path / "run"))
    monkeypatch.undo()
    outcome = loop.fit(config, tmp_path / "run")
    assert (outcome.status, outcome.step) == ("finished", 12)
    assert math.isfinite(outcome.val_loss)


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"loss": jnp.nan}, "loss is nan at step 6: stopped"),
        ({"grad_norm": jnp.inf}, "gradient norm is inf (loss 3."),
        ({"loss": jnp.inf, "grad_norm": jnp.nan}, "loss is inf at step 6: stopped"),
    ],
)
def test_loss_and_gradient(metrics, line, config, tmp_path, altered):
    altered(metrics=lambda step: metrics if step == 6 else {})
    found = stopped(config, tmp_path / "run")
    assert found.startswith(line) and "at step 6: stopped" in found
    assert "the last good checkpoint is of step 4; " in found
    assert "optimizer.lr" in found and "another workdir" in found
