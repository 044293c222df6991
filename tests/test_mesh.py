"""Analyses on several devices and processes find what they find on one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.eight_devices import on_eight_devices

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

CHILD = """
import dataclasses, json, sys
import jax, numpy as np
import sysout_jax as so
from sysout_jax.sharding import make_mesh
from sysout_jax.testing import planted_llama
from tests.models.random_models import random_model

rng = np.random.default_rng()
seed = int(rng.integers(10_000))
print("seed", seed, file=sys.stderr)
found = []
for name in NAMES:
    planted = planted_llama(seed=seed) if name == "planted" else None
    lm = planted.lm if planted else random_model(name, seed)
    # five sequences do not divide by four
    tokens = planted.tokens(5, 40, seed) if planted else rng.integers(0, lm.config.vocab_size, (5, 40))
    runs = []
    for shape in ((1, 1, 1), *SHAPES):
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        lm.mesh = mesh if mesh.size > 1 else None
        logits, taps = so.capture(lm, tokens, ("h", "x_down", "attn_map"))
        runs.append({
            "logits": np.asarray(logits).tolist(),
            "shapes": {name: taps[name].shape for name in taps},
            "attn_map": taps["attn_map"].mean((0, 1, 2)).tolist(),
            "stats": so.collect(lm, tokens, 20.0).to_dict(),
            "perplexity": so.perplexity(lm, tokens).value,
            "lifecycle": json.loads(so.lifecycle(lm, tokens).to_json()) if planted else None,
        })
    print(json.dumps(runs))
"""


def assert_alike(found, want, where: str = "") -> None:
    if isinstance(want, dict):
        assert found.keys() == want.keys(), where
        for key in want:
            assert_alike(found[key], want[key], f"{where}/{key}")
    elif isinstance(want, list) and where.endswith("logits"):
        np.testing.assert_allclose(found, want, atol=2e-5 * np.abs(want).max(), err_msg=where)
    elif isinstance(want, list):
        assert len(found) == len(want), where
        for i, (one, other) in enumerate(zip(found, want, strict=True)):
            assert_alike(one, other, f"{where}/{i}")
    elif isinstance(want, float):
        assert found == pytest.approx(want, rel=1e-3, abs=1e-4), where
    else:
        assert found == want, where


@pytest.mark.parametrize(
    ("names", "shapes"),
    [
        (["planted", "gpt2"], [(2, 2, 2)]),
        pytest.param(
            ["planted", "llama", "llama-mha-biases", "gpt2-nanogpt"],
            [(8, 1, 1), (1, 8, 1), (1, 2, 4), (4, 1, 2)],
            marks=pytest.mark.endurance,
        ),
    ],
    ids=["few", "many"],
)
def test_eight_devices_find_what_one_finds(names, shapes):
    """Indices, counts and the whole lifecycle are equal, numbers to float32 rounding."""
    code = CHILD.replace("NAMES", str(names)).replace("SHAPES", str(shapes))
    lines = on_eight_devices(code).splitlines()
    assert len(lines) == len(names)
    for name, line in zip(names, lines, strict=True):
        one, *many = json.loads(line)
        for found in many:
            assert_alike(found, one, name)


def test_two_processes_write_one_report(tmp_path):
    port = str(random.randint(20000, 50000))
    flags = ("--ckpt", "planted", "--num-seqs", "3", "--seq-len", "32")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(out: str, **more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "analyze.lifecycle", *flags, "--out", str(tmp_path / out)]
        return subprocess.Popen(
            command,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    processes = [
        start(
            f"two-{i}",
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ] + [start("one")]
    texts = []
    for process in processes:
        text, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-3000:]
        # the collectives of several processes on CPU have a word to say first
        texts.append([line for line in text.splitlines() if not line.startswith("[Gloo]")])
    assert not (tmp_path / "two-1").exists() and not texts[1]
    assert (tmp_path / "two-0" / "report.html").is_file()
    found, want = (
        json.loads((tmp_path / name / "lifecycle.json").read_text()) for name in ("two-0", "one")
    )
    assert found.pop("settings")["device"]["count"] == 2
    del want["settings"]
    assert_alike(found, want)
    assert (
        len(texts[0]) > 3 and texts[0][:-1] == texts[2][:-1]
    )  # but for the last line, where it is
