"""--verify: what was written against transformers on the source."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.convert.verify import verify
from tests.convert.command import run_here
from tests.convert.gguf_writer import write_gguf
from tests.families.cases import CASES, save, transformers_model
from tests.families.test_families import FIRST
from tests.parameters import mostly_endurance
from tests.parity_cases import FIXTURES

SOURCE = FIXTURES / "llama-mha"


@pytest.mark.parity
@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_the_command_prints_the_differences(form, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    out = tmp_path / "out"
    args = ("--src", SOURCE, "--out", out, "--format", form, "--verify")
    assert run_here(monkeypatch, *args) == 0
    _, title, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"largest differences from transformers \S+ in float32, 3 × 64 .*:", title)
    assert [line.split()[:-3] for line in lines] == [["logits"], ["h", "1"], ["h", "2"]]
    assert all(float(line.split()[-3]) < 1e-4 < float(line.split()[-1]) for line in lines)

    weights = load_file(SOURCE / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] += 1.0
    changed = tmp_path / "changed"
    changed.mkdir()
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    (changed / "config.json").write_bytes((SOURCE / "config.json").read_bytes())
    found = verify(so.load(out), changed)
    assert found.h[0].largest < 1e-4 < 0.1 < found.h[1].largest and found.logits.largest > 0.1


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    "name", mostly_endurance(FIRST, usual=["llama", "gpt2", "phi", "gemma2", "mixtral"])
)
def test_every_family(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    src = save(transformers_model(CASES[name], 0), tmp_path / "src")
    assert run_here(monkeypatch, "--src", src, "--out", tmp_path / "out", "--verify") == 0
    lines = capsys.readouterr().out.splitlines()[
        -3:
    ]  # others may stand before: ids beyond the vocabulary
    shares = [float(line.split()[-3]) / float(line.split()[-1]) for line in lines]
    assert len(shares) == 3 and np.max(shares) < 1e-4


@pytest.mark.parametrize("case", ["a GGUF file", "nothing installed", "no class"])
def test_nothing_to_compare_with_is_one_line_and_nothing_is_written(
    case, tmp_path, monkeypatch, capsys
):
    src, says = SOURCE, "nothing to compare with"
    if case == "nothing installed":
        monkeypatch.setitem(sys.modules, "transformers", None)
        says = r"--verify: .*pip install 'sysout_jax\[parity\]'"
    else:
        pytest.importorskip("transformers")
        if case == "a GGUF file":
            src = tmp_path / "m.gguf"
            write_gguf(SOURCE, src)
        else:
            src = FIXTURES / "nanogpt"
    assert run_here(monkeypatch, "--src", src, "--out", tmp_path / "out", "--verify") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.search(says, err)
    assert not (tmp_path / "out").exists()
