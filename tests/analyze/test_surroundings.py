"""The surroundings of a command: poor terminals, closed and full outputs, odd variables, another person's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.analyze.command import tree

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-m analyze.existence --ckpt model --prompt Summer --out out"
ODD = """text.usetex: True
backend: nonsense
font.family: No Such Font
axes.prop_cycle: nonsense
no setting
"""


def run(directory: Path, redirect: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, which can close its streams."""
    return subprocess.run(
        ["bash", "-c", f'"{sys.executable}" {FLAGS} {redirect}'],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def written(directory: Path) -> bool:
    return json.loads((directory / "out" / "existence.json").read_text())["found"] is False


def test_a_poor_terminal_and_odd_settings_change_nothing(model, tmp_path):
    (tmp_path / "matplotlibrc").write_text(ODD)
    done = run(
        tmp_path,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        MPLBACKEND="nonsense",
        JAX_ENABLE_X64="1",
        SLURM_NTASKS="",
        HOME="/proc",
        TMPDIR="/nowhere",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u03c4 = 1000" in done.stdout and written(tmp_path)


@pytest.mark.parametrize(
    "redirect, status, stderr",
    [
        ("--bos | true; exit ${PIPESTATUS[0]}", 141, ""),  # what it says before the work
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "error: standard output takes no more: No space left on device\n"),
        ("2>&1 | true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_an_output_that_nobody_reads_costs_no_report(redirect, status, stderr, model, tmp_path):
    done = run(tmp_path, redirect)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", stderr)
    assert written(tmp_path)


@pytest.mark.parametrize(
    "variable, value", [("JAX_PLATFORMS", "cuda"), ("OMPI_COMM_WORLD_SIZE", "x")]
)
def test_variables_that_cannot_be_followed_cost_one_line(variable, value, model, tmp_path):
    before = tree(tmp_path)
    done = run(tmp_path, **{variable: value})
    assert done.returncode == 2 and done.stderr.startswith(f"error: {variable}={value}: ")
    assert done.stderr.count("\n") == 1 and tree(tmp_path) == before
