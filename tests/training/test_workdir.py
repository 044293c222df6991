"""A run's directory belongs to one config, and a run that was killed while it made it can still have it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sysout_jax import checkpoint, staging, workspaces
from sysout_jax.errors import InputError
from sysout_jax.training import workdir
from sysout_jax.training.config import from_dict
from sysout_jax.training.workdir import claim


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_killed_between_its_files_and_claimed_again(config, tmp_path, monkeypatch, survived):
    """Killed before the last of them is in place, a temporary file left behind."""
    (config.data / "tokenizer.json").write_text("{}")
    written = []

    def write(path, content):
        if len(written) == survived:
            monkeypatch.setattr(workspaces, "_remove", lambda path: None)  # as a killed process
            with workspaces.workspace(path.parent, path.name) as work:
                (work / staging.NEW).write_bytes(content[:3])
                raise KeyboardInterrupt
        written.append(path)
        whole(path, content)

    whole = staging.write_file
    for module in (workdir, checkpoint):
        monkeypatch.setattr(module, "write_file", write)
    with pytest.raises(KeyboardInterrupt):
        claim(config, tmp_path / "run")
    monkeypatch.undo()
    claim(config, tmp_path / "run")
    assert from_dict(json.loads((tmp_path / "run/train.json").read_text())) == config
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"train.json", "model.json", "tokenizer.json"} == names


def test_another_config_and_another_directory_are_refused(config, tmp_path):
    claim(config, tmp_path / "run")
    before = (tmp_path / "run/train.json").read_bytes()
    with pytest.raises(InputError, match="seed: 0 → 1; z_loss: 0.0 → 0.1"):
        claim(dataclasses.replace(config, seed=1, z_loss=0.1), tmp_path / "run")
    assert (tmp_path / "run/train.json").read_bytes() == before
    claim(dataclasses.replace(config, steps=99), tmp_path / "run")  # a longer run is the same run
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(InputError, match="no training run"):
        claim(config, tmp_path / "notes")
