"""Training on eight devices gives what one device gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sysout_jax.config import ATTENTION
from tests.eight_devices import on_eight_devices

FEW = ([(1, 1, 1), (2, 2, 2)], [("gpt2", "context_scale"), ("llama", "attention_bias")])
MANY = (
    [(1, 1, 1), (8, 1, 1), (1, 4, 2), (4, 2, 1)],
    [(f, a) for f in ("gpt2", "llama") for a in ATTENTION],
)
CHILD = """
import dataclasses, json, sys
import jax, numpy as np
from pathlib import Path
from sysout_jax.config import ATTENTION
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.sharding import make_mesh
from sysout_jax.training.config import OptimizerConfig, TrainConfig
from sysout_jax.training.step import make_program

jax.config.update("jax_numpy_rank_promotion", "raise")
sizes = dict(vocab_size=64, context_length=16, d_model=16, d_ff=32, num_layers=2, num_heads=4)
families = {"gpt2": Gpt2Config, "llama": lambda **more: LlamaConfig(num_kv_heads=2, head_dim=4, **more)}
models = [families[family](**sizes, attention=a) for family, a in MODELS]
batches = np.random.default_rng(0).integers(0, 64, (3, 2, 8, 17)).astype(np.int32)
for model in models:
    config = TrainConfig(model=model, data=Path("x"), steps=3, batch_size=16, seq_len=16, accumulate=2,
                         dtype="float32", loss_chunk=8, z_loss=1e-3,
                         optimizer=OptimizerConfig(lr=1e-2, min_lr=0, warmup_steps=1, decay_steps=9))
    found = []
    for shape in MESHES:
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            state, losses = program.init(jax.random.key(0)), []
            for batch in batches:
                state, seen = program.train(state, jax.device_put(batch, program.batch_sharding))
                losses += [float(seen["loss"]), float(seen["grad_norm"])]
            losses.append(float(program.evaluate(state["params"], jax.device_put(batches[0, 0], program.eval_sharding), False)))
        found.append(losses)
    print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meshes", "models"),
    [FEW, pytest.param(*MANY, marks=pytest.mark.endurance)],
    ids=["few", "many"],
)
def test_eight_devices_train_like_one(meshes, models):
    """data, fsdp and tensor above one: the same losses and gradient norms to float32 rounding (5e-6)."""
    code = CHILD.replace("MESHES", str(meshes)).replace("MODELS", str(models))
    lines = on_eight_devices(code).splitlines()
    assert len(lines) == len(models)
    for line in lines:
        one, *many = json.loads(line)
        assert len(set(one)) == len(one)
        for losses in many:
            np.testing.assert_allclose(losses, one, rtol=5e-6)
