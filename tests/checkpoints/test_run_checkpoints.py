"""Analyses of training checkpoints: the latest whole one, its values as they were written, also while the run goes on."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.checkpoints import run_checkpoints
from sysout_jax.checkpoints.checkpoint import write_config
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.models import parameter_shapes
from sysout_jax.storage import seal
from sysout_jax.training.checkpoints import Checkpoints

CONFIG = Gpt2Config(
    num_layers=2, d_model=8, num_heads=2, d_ff=16, vocab_size=32, context_length=8, bias=False
)


def params_of(step: int) -> dict:
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32),
        parameter_shapes(CONFIG),
    )


def save(run: Path, *steps: int, keep: int = 5) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_config(run, CONFIG)
    checkpoints = Checkpoints(run, keep)
    for step in steps:
        state = {
            "params": params_of(step),
            "optimizer": {"count": jnp.asarray(step)},
            "step": jnp.asarray(step),
        }
        checkpoints.save(step, state, {}, 1.0 / step)
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("two")
    save(run, 10, 20)
    return run


@pytest.fixture
def run(two, tmp_path) -> Path:
    """A run with checkpoints 10 and 20."""
    return Path(shutil.copytree(two, tmp_path / "run"))


def assert_is(lm: so.LanguageModel, step: int) -> None:
    same = jax.tree.map(lambda a, b: bool((a == b).all()), lm.params, params_of(step))
    assert all(jax.tree.leaves(same))


def test_the_latest_checkpoint_and_any_other(run):
    assert_is(so.load(run), 20)
    assert_is(so.load(run / "checkpoints/10"), 10)


@pytest.mark.parametrize("name", ["999", "21"])
@pytest.mark.parametrize("kind", ["empty", "file", "foreign", "part"])
def test_what_is_not_whole_hides_no_whole_checkpoint(run, caplog, name, kind):
    path = run / "checkpoints" / name
    if kind == "file":
        path.write_text("mine")
    elif kind == "part":
        shutil.copytree(run / "checkpoints/20", path)
        shutil.rmtree(path / "layer_1")
    else:
        path.mkdir()
        if kind == "foreign":
            (path / "notes.txt").write_text("mine")
    assert_is(so.load(run), 20)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{name}: is not whole" in record.getMessage() and "reading 20" in record.getMessage()
    if path.is_dir():
        with pytest.raises(InputError, match=f"{name}: is damaged"):
            so.load(path)


def test_a_run_without_a_whole_checkpoint(run):
    for step in (10, 20):
        shutil.rmtree(run / f"checkpoints/{step}/embed")
    with pytest.raises(InputError, match=r"no whole checkpoint; .*20: is not whole \(embed/"):
        so.load(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints/²").mkdir(parents=True)  # a digit to Python, and no number
    with pytest.raises(InputError, match="no whole checkpoint; wait"):
        so.load(run)


def test_values_that_were_not_written_are_told(run):
    """Whole files, and sealed, as if the memory had been wrong when they were written."""
    shutil.rmtree(run / "checkpoints/20/embed")
    shutil.copytree(run / "checkpoints/10/embed", run / "checkpoints/20/embed")
    seal.write_seal(run / "checkpoints/20")
    with pytest.raises(
        InputError,
        match=r"checkpoints/20: embed/embedding does not hold the numbers that were written",
    ):
        so.load(run).params  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut", "gone"])
@pytest.mark.parametrize("block", [1, seal.BLOCK])
def test_damage_of_any_file_is_told_or_does_not_matter(run, tmp_path, monkeypatch, kind, block):
    monkeypatch.setattr(seal, "BLOCK", block)
    latest = run / "checkpoints/20"
    for number, name in enumerate(sorted(p for p in latest.rglob("*") if p.is_file())):
        copy = Path(shutil.copytree(run, tmp_path / f"{number}"))
        path = copy / "checkpoints/20" / name.relative_to(latest)
        content = bytearray(path.read_bytes())
        if kind == "flip":
            content[(number * 7919) % len(content)] ^= 1 << number % 8
            path.write_bytes(content)
        elif kind == "cut":
            os.truncate(path, len(content) // 2)
        else:
            path.unlink()
        try:
            lm = so.load(copy / "checkpoints/20")
            assert_is(lm, 20)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_checkpoint_that_is_analysed_stays_while_the_run_goes_on(run):
    lm = so.load(run)
    save(run, 30, 40, keep=1)
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {"20", "40"}
    assert_is(lm, 20)
    del lm
    save(run, 50, keep=1)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"50"}


def test_one_that_is_removed_while_it_is_opened_gives_way_to_the_next(run, monkeypatch):
    """At each moment between looking for the latest checkpoint and having it."""

    def after(name):
        whole = getattr(run_checkpoints, name)

        def then_the_run_saves(checkpoint, *args):
            monkeypatch.setattr(run_checkpoints, name, whole)
            save(run, int(checkpoint.name) + 10, keep=1)
            save(run, int(checkpoint.name) + 20, keep=1)
            return whole(checkpoint, *args)

        monkeypatch.setattr(run_checkpoints, name, then_the_run_saves)

    for name, step in (("check_whole", 40), ("hold", 60)):
        after(name)
        assert_is(so.load(run), step)
    with pytest.raises(InputError, match="20.*no such"):
        so.load(run / "checkpoints/20")


@pytest.mark.parametrize("name", ["a[b]", "x*y", "b\\c", "sp ace", "ünï 漢"])
def test_runs_of_any_name(two, tmp_path, name):
    run = Path(shutil.copytree(two, tmp_path / name))
    assert_is(so.load(run), 20)
    assert_is(so.load(run / "checkpoints/10"), 10)
