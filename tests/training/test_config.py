"""Settings of a run: what cannot be is refused when the config is built, with the setting, its value and what was expected."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sysout_jax.errors import InputError
from sysout_jax.sharding import MeshConfig
from sysout_jax.training.config import OptimizerConfig, from_dict, load_config, to_dict

NAN, INF = math.nan, math.inf
ODD = ["1", None, [1], {}, True]
REAL, NOT_NEGATIVE = [NAN, INF, -INF, 1e39, *ODD], [-1, -1e-9]
BAD_OPTIMIZER = {
    "lr": [0, 1e-46, *NOT_NEGATIVE, *REAL],
    "min_lr": [*NOT_NEGATIVE, *REAL],
    "beta1": [1, 1.0, 2, 0.9999999999, *NOT_NEGATIVE, *REAL],
    "beta2": [1, 2, *NOT_NEGATIVE, *REAL],
    "eps": [0, 1e-50, *NOT_NEGATIVE, *REAL],
    "weight_decay": [*NOT_NEGATIVE, *REAL],
    "clip": [*NOT_NEGATIVE, *REAL],
    "momentum": [1, 2, *NOT_NEGATIVE, *REAL],
    "name": ["adam", "", 3, None, ["sgd"]],
    "warmup_steps": [-1, 2.0, NAN, 2**31, *ODD],
    "decay_steps": [-1, 1e5, NAN, 2**31, *ODD],
}
COUNTS = """steps batch_size seq_len accumulate loss_chunk eval_every eval_sequences log_every save_every
    keep monitor_sequences"""
BAD = {name: [0, -1, 1.0, NAN, 10**30, *ODD] for name in COUNTS.split()} | {
    "tokens": [0, -5, 1e9, NAN, 2**64, "1", True],
    "monitor_every": [-1, 0.5, NAN, *ODD],
    "z_loss": [-1e-4, *REAL],
    "seed": [-1, 2**32, 2**64, 0.0, NAN, *ODD],  # 2**32 would draw the weights of seed 0
    "remat": ["false", 0, None],
    "tensorboard": ["false", 1],
    "wandb": [None, 3, False],
    "kernel": [None, 3, "flash"],
    "dtype": ["float16", None, 3],
    "data": ["data", None, 3],
    "model": [None, {}],
    "optimizer": [None, {}],
    "mesh": [None, {}, (1, 1, 1)],
}


def refusal(build, **values) -> str:
    with pytest.raises(InputError) as caught:
        build(**values)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 250
    return message


@pytest.mark.parametrize("name", BAD_OPTIMIZER)
def test_optimiser_settings_that_cannot_be(name):
    for value in BAD_OPTIMIZER[name]:
        message = refusal(OptimizerConfig, **{name: value})
        assert message.startswith(f"optimizer.{name} is ") and "expected" in message


@pytest.mark.parametrize("name", BAD)
def test_settings_that_cannot_be(name, config):
    for value in BAD[name]:
        message = refusal(lambda **new: dataclasses.replace(config, **new), **{name: value})
        assert message.startswith(f"{name} is ") and "expected" in message


@pytest.mark.parametrize("value", [-2, 1.0, 10**30, *ODD])
def test_meshes_that_cannot_be(value):
    for axis in ("data", "fsdp", "tensor"):
        assert refusal(MeshConfig, **{axis: value}).startswith(f"mesh.{axis} is ")


def test_settings_that_do_not_go_together(config):
    change = lambda **new: dataclasses.replace(config, **new)  # noqa: E731
    assert "between 0 and lr 0.1" in refusal(OptimizerConfig, lr=0.1, min_lr=0.2)
    assert "batch_size 7 must be a multiple of accumulate 2" in refusal(change, batch_size=7)
    assert "seq_len 17 exceeds" in refusal(change, seq_len=17)


def test_the_ends_of_what_can_be(config):
    off = OptimizerConfig(
        lr=1, min_lr=0, warmup_steps=0, decay_steps=0, beta1=0, weight_decay=0, clip=0
    )
    for new in (
        {"optimizer": off},
        {"tokens": 1, "monitor_every": 0, "z_loss": 0, "seed": 2**32 - 1},
        {"tokens": 10**13, "mesh": MeshConfig(data=2, tensor=4), "remat": True},
    ):
        changed = dataclasses.replace(config, **new)
        assert from_dict(json.loads(json.dumps(to_dict(changed)))) == changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: [fields],
        lambda fields: 3,
        lambda fields: fields | {"optimizer": None},
        lambda fields: fields | {"optimizer": {"lr": "fast"}},
        lambda fields: fields | {"mesh": [1, 1, 1]},
        lambda fields: fields | {"model": 3},
        lambda fields: fields | {"data": 3},
        lambda fields: fields | {"stepps": 3},
        lambda fields: {},
    ],
)
def test_a_written_config_that_was_damaged(damage, config):
    with pytest.raises(InputError):
        from_dict(damage(to_dict(config)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; sys.exit('books are missing')", "SystemExit: books are missing"),
        ("import sys; sys.exit()", "SystemExit"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E()", "E"),
    ],
)
def test_a_file_that_ends_by_itself(source, message, tmp_path):
    (tmp_path / "c.py").write_text(source)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "c.py")
