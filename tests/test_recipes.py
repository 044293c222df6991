"""The recipes of CONTRIBUTING, followed in a copy of the library: each is one new file or function, and the lines that it names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sysout_jax as so
from tests.analyze.command import write_model

LIBRARY = Path(so.__file__).parent
FAMILY = """
from dataclasses import dataclass

from sysout_jax.families import llama
from sysout_jax.families.family import Family, Layout
from sysout_jax.families.reading import read_rotary


@dataclass(frozen=True, kw_only=True)
class NewConfig(llama.LlamaConfig):
    family: str = "new_family"


def read(fields):
    return NewConfig(**read_rotary(fields))


FAMILY = Family(NewConfig, {"new_type": Layout(read, llama.NAMES, "model.")})
"""
FORMAT = """
import json

import numpy as np

from sysout_jax.checkpoints.formats.foreign import ForeignSource, Held
from sysout_jax.checkpoints.formats.format import Format, Opened
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.families.llama import NAMES


class NewSource(ForeignSource):
    def __init__(self, path, config, arrays):
        self._arrays = arrays
        super().__init__(path, NAMES, config, {n: Held(a.shape, str(a.dtype)) for n, a in arrays.items()})

    def _tensor(self, name):
        return self._arrays[name]


def _open(path, accept):
    arrays = dict(np.load(path))
    config = read_config(json.loads(str(arrays.pop("config"))), str(path)).config
    return Opened(config, NewSource(path, config, arrays), None, None)


FORMAT = Format("arrays in a new format (.new)", lambda path: path.suffix == ".new", _open)
"""
STATISTIC = """
import jax.numpy as jnp
import numpy as np

from sysout_jax.statistics.statistic import Statistic

STATISTIC = Statistic(
    "largest_update",
    taps=("attn_out",),
    reduce=lambda spec, taps: {"largest": jnp.abs(taps["attn_out"]).max((1, 2))},
    row=lambda layer: {"largest": layer.seen["largest_update"]["largest"].max()},
    join=lambda rows, config: np.array([row["largest"] for row in rows]),
    columns=lambda stats: {"largest": stats},
)
"""
VARIANT = '''
def halved(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """Half of everything."""
    attended = attend(q, k, v, kernel=kernel, spec=spec)
    return Mixed(attended._replace(out=attended.out / 2))


'''
#: File → new files, and lines put before others.
NEW_FILES = {
    "families/new_family.py": FAMILY,
    "checkpoints/formats/new_format.py": FORMAT,
    "statistics/largest_update.py": STATISTIC,
}
NEW_LINES = {
    "families/__init__.py": {
        "    olmo,\n": "    new_family,\n",
        '    "llama": llama.FAMILY,\n': '    "new_family": new_family.FAMILY,\n',
    },
    "loading.py": {
        "\n#: Every kind of checkpoint": "from sysout_jax.checkpoints.formats import new_format\n",
        "orbax.FORMAT, hugging_face.FORMAT": "new_format.FORMAT, ",
    },
    "statistics/collect.py": {
        "from sysout_jax.statistics.activations import": "from sysout_jax.statistics import largest_update\n",
        '    "attention": attention.STATISTIC,\n': '    "largest_update": largest_update.STATISTIC,\n',
    },
    "attention/variants.py": {
        "VARIANTS: dict[str, Variant] = {\n": VARIANT,
        '    "default": default,\n': '    "halved": halved,\n',
    },
    "config.py": {'    "default",\n    "fixed_bias",\n': '    "halved",\n'},
}
PROGRAM = """
import dataclasses, json, sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import sysout_jax as so
from sysout_jax.weights import InMemory

work = Path(sys.argv[1])
assert Path(so.__file__).is_relative_to(work), so.__file__
tokens = np.arange(24).reshape(2, 12)


def logits(lm):
    return np.asarray(so.capture(lm, tokens, ())[0])


plain = so.load(work / "plain")
new = so.load(work / "new_type")
assert new.config.family == "new_family" and (logits(new) == logits(plain)).all()

with open(work / "model.new", "wb") as file:
    config = (work / "plain" / "config.json").read_text()
    np.savez(file, config=config, **load_file(work / "plain" / "model.safetensors"))
assert (logits(so.load(work / "model.new")) == logits(plain)).all()

stats = so.collect(plain, tokens)
_, taps = so.capture(plain, tokens, ("attn_out",))
largest = np.abs(taps["attn_out"]).max((1, 2, 3))
np.testing.assert_allclose(stats.gathered["largest_update"], largest, rtol=1e-5)
np.testing.assert_allclose(stats.to_dict()["largest_update"]["largest"], largest, rtol=1e-5)

half = so.LanguageModel(dataclasses.replace(plain.config, attention="halved"), InMemory(plain.params))
_, halved = so.capture(half, tokens, ("attn_out",))
np.testing.assert_allclose(halved["attn_out"][0], taps["attn_out"][0] / 2, rtol=1e-5, atol=1e-7)
print("done")
"""


@pytest.mark.slow
def test_a_family_a_format_a_statistic_and_a_variant(tmp_path):
    copy = tmp_path / "sysout_jax"
    shutil.copytree(LIBRARY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in NEW_FILES.items():
        (copy / name).write_text("from __future__ import annotations\n" + content)
    for name, lines in NEW_LINES.items():
        text = (copy / name).read_text()
        for before, line in lines.items():
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, line + before)
        (copy / name).write_text(text)
    write_model(tmp_path / "plain")
    write_model(tmp_path / "new_type", model_type="new_type")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
