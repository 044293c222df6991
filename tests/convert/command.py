"""Running the converter, and comparing what it was given with what it wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.commands import cli
from sysout_jax.convert import __main__ as convert

ROOT = Path(__file__).resolve().parents[2]


def run_command(*args) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, with both streams in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "sysout_jax.convert", *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_here(monkeypatch, *args) -> int:
    """The same in this process, where importing jax costs nothing more."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        cli.run(convert.main)
    return int(caught.value.code or 0)


def everything_below(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


def assert_same_model(one: so.LanguageModel, other: so.LanguageModel) -> None:
    assert one.config == other.config
    tokens = np.arange(2 * 9).reshape(2, 9) % one.config.vocab_size
    assert so.capture(one, tokens, ())[0].tobytes() == so.capture(other, tokens, ())[0].tobytes()
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def refusal(path, named=None) -> str:
    """The one line with which `so.load` refuses; it names the path, or what is `named`."""
    with pytest.raises(so.InputError) as caught:
        so.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(named or path) in message
    return message
