"""How command lines end."""

from __future__ import annotations

import gc
import signal
import sys
import time
import weakref

import pytest

from sysout_jax import cli
from sysout_jax.reports.summary import fit


def in_the_garbage_collector():
    def callback(phase, info):
        if phase == "start":
            gc.callbacks.remove(callback)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()


def in_the_callback_of_a_weak_reference():
    referred = {0}  # of the built-in containers only sets take weak references
    reference = weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGINT))
    del referred
    assert reference() is None


def in_a_finaliser():
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    Finalised()


@pytest.mark.parametrize(
    "interrupted",
    [in_the_garbage_collector, in_the_callback_of_a_weak_reference, in_a_finaliser],
)
def test_interrupt_arrives_also_where_python_drops_what_is_raised(capsys, monkeypatch, interrupted):
    """One in twenty interrupts hit jax's callback of the garbage collector."""

    def main():
        interrupted()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            time.sleep(0.01)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(main)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert end.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_long_lines_are_broken_for_a_terminal_and_short_ones_left_alone():
    table = "a    b      c\n  1  2      3"
    assert fit(table) == table
    sentence = "word " * 40 + "/a/path/without/any/space" * 5
    assert fit("one\u2028two\x85three\n") == "one\u2028two\x85three\n"  # only line feeds end a line
    lines = fit(f"  {sentence}\nend").splitlines()
    assert lines[0].startswith("  word") and lines[1].startswith(" " * 10 + "word")
    assert all(len(line) <= 100 or " " not in line.strip() for line in lines)
    assert " ".join(" ".join(lines).split()) == " ".join(f"{sentence} end".split())
