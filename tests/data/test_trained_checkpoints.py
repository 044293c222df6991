"""The small trained models that come with the package show what their cards say, on the task that they were trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.demo import demo_text
from sysout_jax.data.tasks import bigram_backcopy, count_bigrams
from sysout_jax.data.trained_checkpoints import DIRECTORY, NAMES, trained_checkpoint

MOST_BYTES = 2_000_000  # a model


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    """Of another bigram table than that of training: of the text that comes with the package."""
    task = bigram_backcopy(count_bigrams([demo_text()]), "te ")
    return task.windows(np.random.default_rng(0), 16, 128)[:, :-1].astype(np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_each_opens_by_its_name_and_has_a_card(name):
    lm = so.load(name)
    assert lm.tokenizer is not None and lm.tokenizer.bos_id == 256
    assert lm.config.attention == name.partition("-")[2]
    assert lm.config.num_layers == 3
    card = (trained_checkpoint(name) / "README.md").read_text()
    assert name in card and lm.config.attention in card
    files = [path for path in trained_checkpoint(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_default_attention_has_a_sink_and_the_scale_has_none(windows):
    share = {}
    for name in NAMES:
        _, taps = so.capture(so.load(name), windows, names=("attn_map",))
        idle = ~np.isin(windows, [ord(c) for c in "te "]) & (np.arange(windows.shape[1]) >= 16)
        to_bos_LxNxT = taps["attn_map"][..., 0].mean(axis=2)
        share[name] = [float(layer[idle].mean()) for layer in to_bos_LxNxT]
    assert share["backcopy-default"][0] > 0.9
    assert share["backcopy-gate"][0] < 0.05
    assert max(share["backcopy-context_scale"]) < 0.1


def test_the_directory_holds_nothing_else():
    assert sorted(path.name for path in DIRECTORY.iterdir()) == sorted(NAMES)


def test_a_path_of_that_name_is_meant_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(NAMES[0]).mkdir()
    with pytest.raises(so.InputError, match="not a model"):
        so.load(NAMES[0])
