"""Paths that no file can have, and homes that nobody has, given to every flag of every command that takes one: one line, status 2."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import sysout_jax as so
from sysout_jax.analyses.compare.measure import compare
from sysout_jax.commands import cli, compilations
from sysout_jax.data import demo_checkpoint
from sysout_jax.data.token_files import open_tokens
from sysout_jax.errors import InputError
from sysout_jax.training.config import load_config
from sysout_jax.training.record import training_record
from tests.adversary.originals import GRID, TINY
from tests.analyze.command import write_model

pytestmark = pytest.mark.slow

ODD = {
    "long": "x" * 300,
    "long inside": "y/" + "x" * 300 + "/z",
    "long python": "x" * 300 + ".py",
    "long source": "x" * 300 + ".txt",
    "nobody's home": "~nobody-is-called-this/x",
    "empty": "",
}
#: A command, and where in it the path goes.
FLAGS = [
    "analyze.lifecycle --ckpt @ --prompt a --out out",
    "analyze.lifecycle --ckpt model --text @ --out out",
    "analyze.lifecycle --ckpt model --data @ --out out",
    "analyze.lifecycle --ckpt model --prompt a --out @",
    "analyze.all --ckpt @ --prompt a --out out",
    "analyze.absorb --ckpt @ --prompt a --out out --save save",
    "analyze.absorb --ckpt model --prompt a --prefix 3 --out out --save @",
    "analyze.absorb --ckpt model --prompt a --prefix 3 --out out --calibration @",
    "analyze.compression --ckpt model --prompt a --compare @ --out out",
    "analyze.compression --ckpt model --prompt a --calibration @ --out out",
    "analyze.compare --runs @ @ --out out",
    "analyze.positions --ckpt model --prompt a --token-classes @ --out out",
    "analyze.variants --ckpt @ --steps all --out out",
    "analyze.variants --ckpt @ --over seed --out out",
    "analyze.variants --ckpt model --compare @ --prompt a --out out",
    "analyze.variants --read @ --out out",
    "sysout_jax.convert.__main__ --src @ --out out",
    "sysout_jax.convert.__main__ --src @ --out out --format hf",
    "train.__main__ --config @ --workdir out",
    "train.__main__ --config tiny.py --workdir out --data @",
    "train.__main__ --config tiny.py --workdir out --init @",
    "train.__main__ --config tiny.py --workdir @",
    "train.prepare --source @ --tokenizer bytes --out out",
    "train.prepare --source text.txt --tokenizer @ --out out",
    "train.prepare --source text.txt --tokenizer bytes --out @",
    "train.sweep @ --workdir out",
    "train.sweep grid.py --workdir @ --dry-run",
    "train.plan --config @ --topology v5e:2x2",
]
#: Directories that any name may become: `""` is the one that the command runs in, which is there.
PLACES = ("--out @", "--workdir @", "--save @")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    write_model(tmp_path / "model")
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "grid.py").write_text(GRID)
    (tmp_path / "text.txt").write_text("Summer is warm.\n" * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(flags.split()[:1] + [w for w, at in zip(flags.split(), flags.split()[1:], strict=False) if at == "@"][:1]))  # fmt: skip
def test_one_line_and_nothing_is_written(flags, odd, here, monkeypatch, capsys):
    if any(flag in flags for flag in PLACES) and not odd.startswith("long"):
        pytest.skip("a directory may be called so")
    if "--dry-run" in flags and odd == "long inside":
        pytest.skip("y is not there, and a look makes nothing")
    command, *arguments = [ODD[odd] if word == "@" else word for word in flags.split()]
    main = importlib.import_module(command).main
    before = sorted(here.rglob("*"))
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("odd", ["long", "long inside", "nobody's home"])
def test_calls_raise_one_kind_of_error(odd):
    path = ODD[odd]
    calls = [so.load, load_config, lambda p: compare(p, p), lambda p: open_tokens(p, "train")]
    for call in calls:
        with pytest.raises(InputError):
            call(Path(path))
    assert training_record(path) is None


def test_a_user_without_a_home(tmp_path, monkeypatch):
    """As in a container that runs under a number that nobody has."""

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SYSOUT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compilations.keep()  # keeps nothing, and that is all
    with pytest.raises(InputError, match="SYSOUT_CACHE"):
        demo_checkpoint.demo_checkpoint()


@pytest.mark.parametrize("place", ["file/below", "x" * 300])
def test_a_cache_that_takes_no_download(place, tmp_path, monkeypatch):
    """Seen before 98 MB come over the wire."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("SYSOUT_CACHE", str(tmp_path / place))
    monkeypatch.setattr(demo_checkpoint, "_download", lambda directory: pytest.fail("fetched"))
    with pytest.raises(InputError, match="cannot be written .*SYSOUT_CACHE"):
        demo_checkpoint.demo_checkpoint()
