"""What the environment says of processes and devices is checked before it is believed."""

from __future__ import annotations

import importlib

import jax
import pytest

from sysout_jax import processes
from sysout_jax.commands import cli
from sysout_jax.errors import InputError, RunError
from tests.adversary.originals import GRID, TINY

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID SLURM_NTASKS OMPI_COMM_WORLD_SIZE "
    "TPU_WORKER_HOSTNAMES"
).split()


@pytest.fixture
def initialised(monkeypatch) -> list[tuple]:
    """What `jax.distributed` was asked to do, in an environment without any of the variables."""
    calls: list[tuple] = []
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    return calls


BY_HAND = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}  # fmt: skip
REFUSED = [
    ({"SLURM_NTASKS": "four"}, "SLURM_NTASKS=four: expected a whole number, at least 1"),
    ({"SLURM_NTASKS": "2(x3)"}, "SLURM_NTASKS=2(x3)"),
    ({"SLURM_NTASKS": "-2"}, "SLURM_NTASKS=-2"),
    ({"SLURM_NTASKS": "9" * 5000}, "SLURM_NTASKS=999"),
    ({"OMPI_COMM_WORLD_SIZE": "1.5"}, "OMPI_COMM_WORLD_SIZE=1.5"),
    (BY_HAND | {"JAX_NUM_PROCESSES": "x"}, "JAX_NUM_PROCESSES=x"),
    (BY_HAND | {"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0"),
    (BY_HAND | {"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID=: expected"),
    (BY_HAND | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2: expected a number below JAX_NUM_PROCESSES=2"),
    (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "nowhere"}, "JAX_COORDINATOR_ADDRESS=nowhere: expected host:port"),
    (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "a b\x1b:x"}, "JAX_COORDINATOR_ADDRESS=a b\\x1b:x"),
]  # fmt: skip


@pytest.mark.parametrize("variables, says", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(variables, says, initialised, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as caught:
        processes.start_processes()
    message = str(caught.value)
    assert says in message and message.isprintable() and len(message) < 1300
    assert not initialised


@pytest.mark.parametrize(
    "variables, calls",
    [
        ({}, []),
        ({"SLURM_NTASKS": "", "OMPI_COMM_WORLD_SIZE": ""}, []),
        ({"SLURM_NTASKS": "1", "JAX_COORDINATOR_ADDRESS": ""}, []),
        ({"SLURM_NTASKS": "2"}, [()]),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, [()]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [()]),
        (BY_HAND, [("10.0.0.1:1234", 2, 1)]),
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "[::1]:99"}, [("[::1]:99", 2, 1)]),
    ],
)
def test_processes_are_started_where_there_are_several(variables, calls, initialised, monkeypatch):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    processes.start_processes()
    assert initialised == calls


def test_processes_that_do_not_meet_cost_one_line(initialised, monkeypatch):
    def fails(*args):
        raise RuntimeError("no\nanswer")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RunError, match="do not find each other \\(no answer\\)"):
        processes.start_processes()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize\nbackend 'cuda'"), AssertionError()])  # fmt: skip
def test_a_platform_that_is_not_there(error, monkeypatch):
    def fails():
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match="JAX_PLATFORMS=cuda: no such device can be used here.*cpu$") as caught:  # fmt: skip
        processes.all_devices()
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(type(error)):
        processes.all_devices()


@pytest.mark.parametrize(
    "flags",
    [
        "analyze.lifecycle --prompt a",
        "analyze.compare --runs one two",
        "analyze.variants --read sweep.json",
        "sysout_jax.convert.__main__ --src model",
        "train.__main__ --config tiny.py --workdir new",
        "train.sweep grid.py --workdir new",
    ],
    ids=lambda flags: flags.split()[0],
)
def test_every_command_asks_for_it_first(flags, tmp_path, monkeypatch, capsys):
    """Also those that run no model: a report names the device, and Orbax asks for one."""

    def fails(*_):
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "grid.py").write_text(GRID)
    command, *given = flags.split()
    out = [] if "new" in given else ["--out", "new"]
    monkeypatch.setattr("sys.argv", [command, *given, *out])
    with pytest.raises(SystemExit) as end:
        cli.run(importlib.import_module(command).main)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: JAX_PLATFORMS=cuda: "), said
    assert said.count("\n") == 1 and not (tmp_path / "new").exists()
