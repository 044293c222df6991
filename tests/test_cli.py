"""How command lines end."""

from __future__ import annotations

import gc
import signal
import time

import pytest

from sysout_jax import cli
from sysout_jax.reports.summary import fit


def test_interrupt_arrives_also_from_within_the_garbage_collector(capsys):
    """Python drops what a callback of the collector raises; one in twenty interrupts hit jax's."""

    def interrupted_within(phase, info):
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    def main():
        gc.collect()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            time.sleep(0.01)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    gc.disable()  # the collection below is the only one: no second interrupt on the way out
    gc.callbacks.append(interrupted_within)
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(main)
    finally:
        gc.callbacks.remove(interrupted_within)
        gc.enable()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_long_lines_are_broken_for_a_terminal_and_short_ones_left_alone():
    table = "a    b      c\n  1  2      3"
    assert fit(table) == table
    sentence = "word " * 40 + "/a/path/without/any/space" * 5
    lines = fit(f"  {sentence}\nend").splitlines()
    assert lines[0].startswith("  word") and lines[1].startswith(" " * 10 + "word")
    assert all(len(line) <= 100 or " " not in line.strip() for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(f"{sentence} end".split())
