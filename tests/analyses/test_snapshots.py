"""Few numbers of many checkpoints: against raw intermediates in numpy, grouped, averaged, and told apart by their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.variants.snapshots import (
    Snapshot,
    checkpoints_of,
    equals,
    over_runs,
    runs_of,
    snapshot,
    weights_hash,
)
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import TrainConfig, to_dict
from sysout_jax.weights import InMemory
from tests.models.random_models import CONFIGS
from tests.random_models import random_params


def one(step: int, hash: str = "a", **values) -> Snapshot:
    return Snapshot(f"x/{step}", step, hash, {n: np.array(v) for n, v in values.items()}, {})


@pytest.mark.slow  # compiles a whole pass
def test_values_of_raw_intermediates(tmp_path):
    config = CONFIGS["gpt2"]
    params = random_params(config, 5)
    lm = so.LanguageModel(config, InMemory(params))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 12))
    found = snapshot(lm, tokens, tmp_path).values
    _, taps = so.capture(lm, tokens, ["h", "x_down", "attn_map", "v"])
    taps = {name: np.asarray(value, np.float64) for name, value in taps.items()}
    share = taps["attn_map"][..., 0].mean((1, 2, 3))
    even = sum(1 / (t + 1) for t in range(12)) / 12
    norm = np.linalg.norm(taps["v"], axis=-1).mean(-1)  # L, N, T
    h, x_down = np.abs(taps["h"]), np.abs(taps["x_down"])
    wanted = {
        "first_token_share": share,
        "first_token_over_even": share / even,
        "h_ratio": (h.max((2, 3)) / h.mean((2, 3))).max(1),
        "value_drain": (norm[:, :, 0] / norm[:, :, 1:].mean(-1)).mean(1),
        "x_down_ratio": (x_down.max((2, 3)) / x_down.mean((2, 3))).max(1),
        "x_down_top": x_down.max((1, 2, 3)),
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)
    down = [np.abs(params[f"layer_{l}"]["mlp"]["down_proj"]["kernel"]) for l in range(len(share))]
    # stored (in, out): a column of the paper's W is a row here
    ratios = [(w.max(1) / w.mean(1)).max() for w in down]
    np.testing.assert_allclose(found["down_column_ratio"], ratios, rtol=1e-5)


def test_mean_and_interval():
    runs = [one(1, val_loss=[v], h_ratio=[v, 0.0]) for v in (1.0, 2.0, 6.0)]
    found = over_runs(runs)
    # 97.5 % of Student's t with two degrees of freedom is 4.3027; the standard deviation is √7
    np.testing.assert_allclose(found["val_loss"].mean, [3])
    np.testing.assert_allclose(found["val_loss"].half_width, [4.302653 * np.sqrt(7 / 3)], rtol=1e-6)
    assert found["h_ratio"].half_width[1] == 0 and found["h_ratio"].count == 3
    alone = over_runs(runs[:1])["val_loss"]
    assert alone.mean == [1] and np.isnan(alone.half_width).all()
    assert set(over_runs([*runs, one(1, val_loss=[1.0])])) == {"val_loss"}


def test_equal_weights_have_one_hash():
    config = CONFIGS["gpt2"]

    def hashed(seed: int, factor: float = 1.0) -> str:
        params = random_params(config, seed)
        params["layer_0"]["attn"]["o_proj"]["kernel"] = params["layer_0"]["attn"]["o_proj"][
            "kernel"
        ] * np.float32(factor)
        return weights_hash(so.LanguageModel(config, InMemory(params)))

    assert hashed(1) == hashed(1) != hashed(2)
    assert hashed(1, factor=1 + 2**-20) != hashed(1)
    assert equals([one(1, "a"), one(2, "b"), one(3, "a"), one(4, "b")]) == [0, 1, 0, 1]


def test_what_a_folder_holds(tmp_path):
    (tmp_path / "step-20").mkdir()
    for name in ("step-100", "notes-3"):
        (tmp_path / name).mkdir()
    for name in ("step-20", "step-100"):
        (tmp_path / name / "config.json").write_text('{"model_type": "gpt2"}')
    assert [step for step, _ in checkpoints_of(tmp_path)] == [20, 100]
    shutil.rmtree(tmp_path / "step-20")
    shutil.rmtree(tmp_path / "step-100")
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="holds no checkpoints"):
            checkpoints_of(place)


MODEL = Gpt2Config(
    vocab_size=19, context_length=8, d_model=8, d_ff=8, num_layers=2, num_heads=2, bias=False
)


def test_runs_are_grouped_by_the_other_axes(tmp_path):
    for name in ("seed=0,variant=a", "seed=1,variant=a", "seed=0,variant=b", "seed=9,variant=a"):
        at = tmp_path / name / "checkpoints" / "5" / "data"
        at.mkdir(parents=True)
        if "9" not in name:  # has no whole checkpoint yet
            (at / "metadata").write_text("{}")
    behind = tmp_path / "seed=2,variant=b" / "checkpoints" / "4" / "data"
    behind.mkdir(parents=True)
    (behind / "metadata").write_text("{}")
    found, left_out = runs_of(tmp_path, "seed")
    assert left_out == ["seed=2,variant=b"]
    assert {k: [p.name for p in v] for k, v in found.items()} == {
        "variant=a": ["seed=0,variant=a", "seed=1,variant=a"],
        "variant=b": ["seed=0,variant=b"],
    }

    def config_of(variant: str, seed: int, **changes) -> None:
        config = TrainConfig(
            model=MODEL, data=Path("data"), steps=5, batch_size=2, seq_len=8, seed=seed, **changes
        )
        path = tmp_path / f"seed={seed},variant={variant}" / "train.json"
        path.write_text(json.dumps(to_dict(config)))

    config_of("a", 0)
    config_of("a", 1)
    assert runs_of(tmp_path, "seed")[0] == found
    config_of("a", 1, accumulate=2)
    with pytest.raises(
        InputError,
        match=r"seed=0,variant=a and seed=1,variant=a: differ in more than seed \(accumulate: 1 → 2\)",
    ):
        runs_of(tmp_path, "seed")
    shutil.copy(tmp_path / "seed=0,variant=a" / "train.json", tmp_path / "seed=1,variant=a")
    with pytest.raises(
        InputError, match="seed=0,variant=a and seed=1,variant=a: hold the same run"
    ):
        runs_of(tmp_path, "seed")
    with pytest.raises(InputError, match="no axis sed; expected one of seed, variant"):
        runs_of(tmp_path, "sed")
    with pytest.raises(InputError, match="holds no runs"):
        runs_of(tmp_path / "missing", "seed")
