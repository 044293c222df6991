"""A converted directory gives the weights that were written or one line; what is said to be written can be read."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sysout_jax as so
from analyze import existence
from sysout_jax.checkpoints import checkpoint
from sysout_jax.errors import RunError
from sysout_jax.weights import InMemory
from tests.analyze import command
from tests.convert.command import ROOT, assert_same_model, everything_below, run_here
from tests.parameters import mostly_endurance
from tests.parity_cases import FIXTURES

SRC = FIXTURES / "gpt2"
# what threads of libraries print after an error of ours
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    model = so.load(SRC)
    checkpoint.save(out, model.config, model.source, "float32", bos_id=3)
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def parts(directory: Path) -> list[Path]:
    return sorted(p for p in (directory / "params").rglob("*") if p.is_file())


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def bits(model: so.LanguageModel) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params)]


def outcome(directory: Path, whole: Path) -> str:
    """What loading all weights comes to: the line of a refusal, or "same"; anything else fails the test."""
    try:
        model = so.load(directory)
        read = bits(model)
    except so.InputError as error:
        return str(error)
    assert model.config == so.load(whole).config and read == bits(so.load(whole))
    return "same"


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_is_refused_or_changes_nothing(seed, copy, whole, capfd):
    rng = random.Random(seed)
    path = rng.choice([p for p in parts(copy) if p.stat().st_size])
    flip(path, rng)
    told = outcome(copy, whole)
    assert "\n" not in told and len(told) < 1000
    said = capfd.readouterr()
    assert "Traceback" not in said.err and said.out == ""


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_in_the_config_is_refused(seed, copy):
    flip(copy / "model.json", random.Random(seed))
    with pytest.raises(so.InputError, match=str(copy / "model.json")):
        so.load(copy)


@pytest.mark.parametrize("entry", ["norm_eps", "context_length"])
def test_another_setting_is_refused_unless_it_was_meant(entry, copy):
    """Every weight is as it was, and the model would be another."""
    fields = json.loads((copy / "model.json").read_text())
    fields["config"][entry] *= 2
    (copy / "model.json").write_text(json.dumps(fields))
    with pytest.raises(so.InputError, match="remove the entry 'checksum'"):
        so.load(copy)
    if entry == "norm_eps":  # which no weight depends on
        del fields["checksum"]
        (copy / "model.json").write_text(json.dumps(fields))
        assert so.load(copy).config.norm_eps == fields["config"]["norm_eps"]


def test_a_flipped_bit_in_the_weights_is_refused(copy, capfd):
    """The largest file holds them; nothing but the checksum sees most of its bits."""
    path = max(parts(copy), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    for place in range(0, len(content), max(1, len(content) // 8)):
        content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(so.InputError, match=r"params: layer_\d|params: embed"):
        _ = so.load(copy).params
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("change", ["truncate", "delete", "grow", "add", "delete a group"])
def test_files_are_held_against_the_list_when_it_opens(change, copy):
    part = next(p for p in parts(copy) if "layer_1" in str(p) and p.stat().st_size > 1000)
    if change == "truncate":
        os.truncate(part, part.stat().st_size - 1)
    elif change == "delete":
        part.unlink()
    elif change == "grow":
        part.write_bytes(part.read_bytes() + b"x")
    elif change == "add":
        (part.parent / "more").write_text("x")
    else:
        shutil.rmtree(copy / "params" / "layer_1")
    with pytest.raises(so.InputError, match="params: ") as refused:
        so.load(copy)
    assert "layer_1" in str(refused.value) and "\n" not in str(refused.value)


def test_other_weights_of_the_same_shape_are_refused(copy, tmp_path):
    """Copied from another model: every file is whole."""
    model = so.load(copy)
    other = jax.tree.map(lambda x: np.asarray(x) + 1, model.params)
    checkpoint.save(tmp_path / "other", model.config, InMemory(other), "float32")
    for name in ("params/layer_0",):
        shutil.rmtree(copy / name)
        shutil.copytree(tmp_path / "other" / name, copy / name)
    with pytest.raises(so.InputError, match="layer_0"):
        _ = so.load(copy).params


def test_more_layers_than_lie_there(copy):
    """Said before anything is built for a million layers."""
    fields = json.loads((copy / "model.json").read_text())
    fields["config"]["num_layers"] = 10**6
    (copy / "model.json").write_text(json.dumps({k: fields[k] for k in ("config", "bos_token_id")}))
    with pytest.raises(so.InputError, match="1,?000,?000"):
        so.load(copy)


def test_directories_from_before_there_were_checksums_still_open(copy, whole, caplog):
    fields = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({k: fields[k] for k in ("config", "bos_token_id")}))
    assert outcome(copy, whole) == "same"
    assert "no checksums" in caplog.text


def test_a_damaged_one_from_before_costs_one_line_too(copy, capfd):
    fields = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({k: fields[k] for k in ("config", "bos_token_id")}))
    for part in parts(copy):
        if "layer_1" in str(part) and "/d/" in str(part):
            os.truncate(part, 10)
    with pytest.raises(so.InputError, match="layer_1 cannot be read") as refused:
        _ = so.load(copy).params
    assert "\n" not in str(refused.value) and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_is_checked_as_it_is_stored(dtype, tmp_path):
    model = so.load(SRC)
    checkpoint.save(tmp_path / "out", model.config, model.source, dtype)
    for asked in ("float32", "bfloat16"):
        assert_same_model(
            so.LanguageModel(model.config, model.source, dtype=asked)
            if dtype == "float32"
            else so.load(tmp_path / "out", asked),
            so.load(tmp_path / "out", asked),
        )


@pytest.mark.slow
def test_an_analysis_of_a_damaged_model_writes_nothing(tmp_path, monkeypatch, capfd):
    model = so.load(command.write_model(tmp_path / "model"))
    checkpoint.save(tmp_path / "out", model.config, model.source, "float32", model.tokenizer, 256)
    # where the group's values are listed: in larger files there are bytes that nobody reads
    (path,) = (tmp_path / "out" / "params" / "layer_1" / "d").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    flags = ("--ckpt", tmp_path / "out", "--prompt", "Summer", "--out", tmp_path / "report")
    assert command.call(monkeypatch, existence.main, *flags) == 2
    said = capfd.readouterr().err
    assert "layer_1" in said and said.count("\n") == 1
    assert not (tmp_path / "report").exists()


# --- writing


NAMES = [
    "a[1]", "a[b", "b]", "back\\slash", "end\\", "st*r", "q?", "sp ace", "ünï 漢", "new\nline", "{x}", "%41", "a#b",
    "file:", "a|b", "~", "-x", "\x01", "\udcff", "trailing ", "x" * 240, "tab\t", "a&b", "'q'", '"', "$HOME", ".hidden",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    mostly_endurance(
        itertools.product(NAMES, ["itself", "parent"]),
        usual=zip(NAMES, itertools.cycle(["itself", "parent"])),
    ),
    ids=lambda value: ascii(value)[:20],
)
def test_a_place_of_any_name_is_read_again_or_refused(name, place, tmp_path, monkeypatch, capfd):
    (tmp_path / "sandbox").mkdir()
    out = tmp_path / "sandbox" / name if place == "itself" else tmp_path / "sandbox" / name / "out"
    status = run_here(monkeypatch, "--src", SRC, "--out", out)
    if status:
        assert status == 2 and capfd.readouterr().err.count("\n") == 1
        assert not everything_below(tmp_path / "sandbox")
        return
    assert_same_model(so.load(SRC), so.load(out))
    top = tmp_path / "sandbox" / name
    assert list((tmp_path / "sandbox").iterdir()) == [top], "nothing lies elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["orbax", "hf"])
@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_a_full_disk_costs_one_line(format, blocks, tmp_path):
    """A limit on file size stands for the disk: the same errors from the same calls."""
    done = subprocess.run(
        f"ulimit -f {blocks}; trap '' XFSZ; exec {sys.executable} -m sysout_jax.convert --src {SRC} "
        f"--out {tmp_path / 'new' / 'out'} --format {format}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr  # the reason, not only that it failed
    assert "not written" in done.stderr and not everything_below(tmp_path)


def test_what_does_not_read_back_is_no_success(tmp_path, monkeypatch):
    """Whatever the cause: here the library writes other numbers than it was given."""
    import orbax.checkpoint as ocp

    save = ocp.Checkpointer.save

    def wrong(self, directory, tree, *args, **kwargs):
        tree = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.0001), tree)
        return save(self, directory, tree, *args, **kwargs)

    monkeypatch.setattr(ocp.Checkpointer, "save", wrong)
    monkeypatch.setattr(ocp.StandardCheckpointer, "save", wrong)
    model = so.load(SRC)
    with pytest.raises(RunError, match="embed"):
        checkpoint.save(tmp_path / "out", model.config, model.source, "float32")
    assert not everything_below(tmp_path)
