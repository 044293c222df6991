"""Every refusal of an argument is one line that says what to do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sysout_jax.commands.arguments import parse
from sysout_jax.errors import InputError


@dataclass(frozen=True)
class Inner:
    rope_theta: float = 1.0

    def __post_init__(self):
        if self.rope_theta < 0:
            raise ValueError(f"rope_theta {self.rope_theta:g}: expected 0 or more")


@dataclass(frozen=True)
class Args:
    """A command."""

    ckpt: str
    """Help that is long enough to be broken into several lines of a box if it were shown in a message of refusal, which it is not."""
    out: Path = Path("out")
    num_seqs: int | None = None
    """Windows."""
    tau: float = 1000.0
    bos: bool = False
    compare: tuple[str, ...] = ()
    format: Literal["orbax", "hf"] = "orbax"
    inner: Inner = Inner()


GOOD = ["--ckpt", "x"]
REFUSED = {
    "nothing": ([], "--ckpt missing"),
    "a flag that is like another": ([*GOOD, "--num-seq", "3"], "--num-seq, 3; did you mean --num-seqs?"),
    "one like another below": ([*GOOD, "--inner.rope-thet", "3"], "did you mean --inner.rope-theta?"),
    "a flag like none": ([*GOOD, "--zzz"], "Unrecognized options: --zzz;"),
    "a word": ([*GOOD, "word"], "Unrecognized options: word"),
    "no value": ([*GOOD, "--tau"], "Missing value for argument '--tau'. Expected 1 values;"),
    "two values": ([*GOOD, "--tau", "1", "2"], "Unrecognized options: 2"),
    "no number": ([*GOOD, "--tau", "many"], "--tau: could not convert string to float: 'many'"),
    "no whole number": ([*GOOD, "--num-seqs", "1.5"], "--num-seqs"),
    "a number of 5,000 digits": ([*GOOD, "--num-seqs", "1" * 5000], "--num-seqs"),
    "no choice": ([*GOOD, "--format", "xml"], "'xml' for argument '--format'. Expected one of ('orbax', 'hf');"),
    "a value for a switch": ([*GOOD, "--bos", "yes"], "Unrecognized options: yes"),
    "an impossible value": ([*GOOD, "--inner.rope-theta", "-1"], "rope_theta -1: expected 0 or more"),
    "underscores": ([*GOOD, "--num_seqs", "3"], "--num_seqs: unknown; did you mean --num-seqs?"),
    "underscores and =": ([*GOOD, "--num_seqs=3"], "--num_seqs: unknown; did you mean --num-seqs?"),
    "underscores below": ([*GOOD, "--inner.rope_theta", "3"], "did you mean --inner.rope-theta?"),
    "an empty path": ([*GOOD, "--out", ""], "--out: is empty; name a file or directory"),
    "an empty path behind =": ([*GOOD, "--out="], "--out: is empty; name a file or directory"),
    "a list of nothing": ([*GOOD, "--compare"], "--compare: has no value; give at least one, or leave the flag out"),
    "a list of nothing before a flag": ([*GOOD, "--compare", "--tau", "3"], "--compare: has no value"),
    "twice": ([*GOOD, "--tau", "3", "--tau", "3"], "--tau: given twice; give it once"),
    "twice, of many values": ([*GOOD, "--compare", "a", "--compare", "b"], "--compare: given twice"),
    "yes and no": ([*GOOD, "--bos", "--no-bos"], "--no-bos: given twice, as --bos; give it once"),
    "escape codes": ([*GOOD, "a\x1b]0;title\x07"], "a\\x1b]0;title\\x07"),
    "a long one": ([*GOOD, "--" + "x" * 30_000], "Unrecognized options: --xxx"),
    "one of 300,000 characters": ([*GOOD, "--" + "x" * 300_000], "Unrecognized options: --xxx"),
    "many": ([*GOOD, *map(str, range(10_000))], "Unrecognized options: 0, 1, 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, capsys):
    arguments, says = REFUSED[case]
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        parse(Args, "python -m command", arguments)
    assert time.process_time() - start < 3
    message = str(caught.value)
    assert says in message
    assert (
        "\n" not in message and "│" not in message and len(message) < 600 and message.isprintable()
    )
    assert capsys.readouterr() == ("", "")


def test_good_arguments_and_help(capsys, monkeypatch):
    given = [
        "--ckpt",
        "x",
        "--num-seqs=3",
        "--no-bos",
        "--inner.rope-theta",
        "2",
        "--compare",
        "a_b",
        "c",
    ]
    assert parse(Args, "python -m command", given) == Args("x", num_seqs=3, compare=("a_b", "c"), inner=Inner(2.0))  # fmt: skip
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit) as ending:
        parse(Args, "python -m command", ["--help"])
    assert not ending.value.code
    out = capsys.readouterr().out
    assert "usage: python -m command" in out and max(map(len, out.splitlines())) <= 70
