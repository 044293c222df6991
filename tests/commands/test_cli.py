"""How command lines begin and end."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from sysout_jax import notices
from sysout_jax.commands import cli
from sysout_jax.commands.arguments import parse
from sysout_jax.errors import InputError, RunError, UnknownSettings
from sysout_jax.reports.terminal import fit


def status(main) -> int:
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    return int(end.value.code or 0)


def fail(error: BaseException):
    def main():
        raise error

    return main


ENDS = {
    "well": (lambda: None, 0, ""),
    "help": (fail(SystemExit(0)), 0, ""),
    "bad input": (fail(InputError("given\n  this, expected that")), 2, "error: given this, expected that\n"),
    "cannot go on": (fail(RunError("disk full")), 1, "error: disk full\n"),
    "interrupted": (fail(KeyboardInterrupt()), 130, "interrupted\n"),
    "out of memory": (fail(MemoryError("no 9 TB")), 1, "error: out of memory (no 9 TB); ask for less at a time\n"),
    "out of the device's": (
        fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 TB")), 1,
        "error: out of memory (RESOURCE_EXHAUSTED: 9 TB); ask for less at a time\n",
    ),
    "escape codes": (fail(InputError("a\x1b[31mred\x07")), 2, "error: a\\x1b[31mred\\x07\n"),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_statuses_and_lines(case, capsys):
    main, number, line = ENDS[case]
    assert status(main) == number
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError(errno.EIO, "a disk"), jax.errors.JaxRuntimeError("bug")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        cli.run(fail(error))


def test_an_endless_message_is_cut(capsys):
    assert status(fail(InputError("name " + "x" * 1_000_000 + " end"))) == 2
    line = capsys.readouterr().err
    assert len(line) < 1100 and line.startswith("error: name xxx") and line.endswith("xxx end\n")


@pytest.mark.parametrize("encoding, shown", [("ascii", b"\\u03c4 > \\xe9"), ("latin-1", b"\\u03c4 > \xe9"), ("utf-8", "τ > é".encode())])  # fmt: skip
def test_no_terminal_is_too_poor_for_a_character(encoding, shown, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert status(lambda: print("τ > é")) == 0
    assert raw.getvalue() == shown + b"\n"


def test_closed_streams_are_no_obstacle(monkeypatch):
    def main():
        print("a line")
        raise InputError("bad")

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert status(main) == cli.BAD_INPUT


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_early_is_told_by_the_status_alone(lines, capsys, monkeypatch):
    with capsys.disabled(), closed_pipe() as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", io.StringIO())
        assert status(lambda: [cli.say("line") for _ in range(lines)]) == cli.BROKEN_PIPE
        assert sys.stderr.getvalue() == ""
        assert status(lambda: [cli.say("line"), fail(InputError("bad"))()]) == cli.BAD_INPUT


def test_what_nobody_reads_ends_no_work(capsys, monkeypatch):
    """Also where others flush the stream, as a process that is started does."""
    done = []

    def work():
        cli.say("a note")
        sys.stdout.flush()
        done.append("report")
        cli.say("a summary")

    with capsys.disabled(), closed_pipe() as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", io.StringIO())
        assert status(work) == cli.BROKEN_PIPE and done == ["report"]
        assert sys.stderr.getvalue() == ""
    assert status(lambda: cli.say("said")) == 0  # the next output is another one


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_nor_does_a_full_disk_below_the_output(capsys, monkeypatch):
    done = []

    def work() -> None:
        cli.say("a note")
        done.append("report")
        cli.say("a summary")

    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert status(work) == cli.CANNOT_GO_ON and done == ["report"]
        monkeypatch.undo()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_listener_to_errors_that_left_changes_no_status(monkeypatch):
    with closed_pipe() as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert status(fail(InputError("bad"))) == cli.BAD_INPUT
        os.dup2(os.open(os.devnull, os.O_WRONLY), stderr.fileno())  # so that it can be closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_full_disk_below_the_output_costs_one_line(lines, capsys, monkeypatch):
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert status(lambda: [cli.say("line") for _ in range(lines)]) == cli.CANNOT_GO_ON
        monkeypatch.undo()
    line = capsys.readouterr().err
    assert line == "error: standard output takes no more: No space left on device\n"


def test_a_notice_is_a_plain_line_whatever_libraries_do_to_the_root_logger(capsys, monkeypatch):
    """Some call `logging.basicConfig`, or log by functions that do."""
    others = logging.StreamHandler(sys.stderr)
    others.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    monkeypatch.setattr(logging.getLogger(), "handlers", [others])
    assert status(lambda: notices.warn("the checkpoint of step 6 is\ndamaged \x1b[31m")) == 0
    assert capsys.readouterr().err == "the checkpoint of step 6 is damaged \\x1b[31m\n"
    notices.warn("outside of a command")
    assert capsys.readouterr().err == "WARNING:sysout_jax.notices:outside of a command\n"


def test_results_do_not_depend_on_the_64_bit_mode_of_the_environment():
    with jax.enable_x64(False):
        seen = []
        jax.config.update("jax_enable_x64", True)
        try:
            status(lambda: seen.append(jax.config.jax_enable_x64))
        finally:
            jax.config.update("jax_enable_x64", False)
    assert seen == [False]


def test_long_lines_are_broken_for_a_terminal_and_short_ones_left_alone():
    table = "a    b      c\n  1  2      3"
    assert fit(table) == table
    sentence = "word " * 40 + "/a/path/without/any/space" * 5
    assert (
        fit("one\u2028two\x85three\n") == "one\\u2028two\\x85three\n"
    )  # only line feeds end a line
    lines = fit(f"  {sentence}\nend").splitlines()
    assert lines[0].startswith("  word") and lines[1].startswith(" " * 10 + "word")
    assert all(len(line) <= 100 or " " not in line.strip() for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(f"{sentence} end".split())


def test_lines_from_outside_hold_no_escape_codes(capsys):
    assert fit("model \x1b[2J\x9b1m\n\u202efin") == "model \\x1b[2J\\x9b1m\n\\u202efin"
    cli.say("a\x1b\nb")
    assert capsys.readouterr().out == "a\\x1b\nb\n"


@dataclass(frozen=True)
class _Accepts:
    accept_setting: tuple[str, ...] = ()


SETTINGS = ["plain", "rope_parameters.x", "it's", 'say "x"', "$HOME `id`", "a\x1b[31mb", "a  b\n", "7\x077", "ä🙂", "\u202ex", "-x", "", "*"]  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "ksh"])
def test_the_advice_to_accept_settings_works_when_it_is_pasted(shell, capsys):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    assert status(fail(UnknownSettings("these", tuple(SETTINGS), ("given", "it's")))) == 2
    line = capsys.readouterr().err.removesuffix("\n")
    assert line.isascii() and line.isprintable()
    advice = line.removeprefix("error: these (").removesuffix(")")
    listing = "import json, sys; print(json.dumps(sys.argv[1:]))"
    shown = subprocess.run(
        [shell, "-c", f"{shlex.join([sys.executable, '-c', listing])} {advice}"],
        capture_output=True,
        text=True,
        check=True,
    )
    parsed = parse(_Accepts, "x", json.loads(shown.stdout))
    assert sorted(parsed.accept_setting) == sorted({"given", *SETTINGS})


@pytest.mark.parametrize("names", [("\ud800",), ("a\0b",), ("--a", "-b"), ("x" * 5000,)])
def test_what_no_command_line_can_accept_is_not_advised(names, capsys):
    assert status(fail(UnknownSettings("these", names))) == 2
    assert capsys.readouterr().err == "error: these\n"
