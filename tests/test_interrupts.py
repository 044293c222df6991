"""Signals end a guarded process at once, with one line, whatever its threads are doing. These processes load one module and no jax."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sysout_jax import interrupts

GUARDED = f"""
import importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("interrupts", {interrupts.__file__!r})
interrupts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interrupts)
interrupts.guard()
def ready():
    os.write(1, b"ready\\n")
"""
ENDS = [
    (signal.SIGINT, 130, "interrupted\n"),
    (signal.SIGTERM, 143, "terminated\n"),
    (signal.SIGHUP, 129, "the terminal is gone\n"),
]
LIMIT = 60  # seconds; nothing here takes one of them


def as_from_a_terminal() -> None:
    """A background shell ignores SIGINT, and nohup SIGHUP, and so would the process."""
    for number, _, _ in ENDS:
        signal.signal(number, signal.SIG_DFL)


def start(code: str, before=as_from_a_terminal, **more):
    """A guarded process, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", GUARDED + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
        **more,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def outcome(process, number: int) -> tuple[int, str]:
    process.send_signal(number)
    try:
        _, stderr = process.communicate(timeout=LIMIT)
    finally:
        process.kill()  # nothing where it has ended
    return process.returncode, stderr


BUSY = {
    "in Python": "ready()\nwhile True: pass",
    "asleep": "ready()\ntime.sleep(1000)",
    "in C code that hands no signal on": "import hashlib\nready()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "in a finaliser, where Python drops what is raised": """
        class Finalised:
            def __del__(self):
                ready()
                time.sleep(1000)
        Finalised()
        """,
    "in the garbage collector": """
        import gc
        def callback(phase, info):
            gc.callbacks.remove(callback)
            ready()
            time.sleep(1000)
        gc.callbacks.append(callback)
        gc.collect()
        """,
    "where everything is caught": """
        ready()
        while True:
            try: time.sleep(1000)
            except BaseException: pass
        """,
    "waiting for a thread": """
        thread = threading.Thread(target=time.sleep, args=(1000,))
        thread.start()
        ready()
        thread.join()
        """,
    "at exit": """
        import atexit
        atexit.register(lambda: (ready(), time.sleep(1000)))
        interrupts.leave(0)
        """,
    "with a library that took the wake-up": "signal.set_wakeup_fd(-1)\nready()\ntime.sleep(1000)",
}


@pytest.mark.parametrize("number, status, line", ENDS)
@pytest.mark.parametrize("busy", BUSY)
def test_one_line_and_the_status_of_the_signal(busy, number, status, line):
    assert outcome(start(BUSY[busy]), number) == (status, line)


@pytest.mark.parametrize("number, status, line", ENDS)
def test_clean_ups_are_done_while_the_main_thread_stands_still(number, status, line, tmp_path):
    process = start(
        """
        import shutil
        def fails(): raise OSError("no")
        with interrupts.cleaning_up(fails), interrupts.cleaning_up(lambda: shutil.rmtree("work")):
            with interrupts.cleaning_up(lambda: os.mkdir("of a block that has ended")): pass
            os.mkdir("work")
            ready()
            while True: open("work/file", "w").close()
        """,
        cwd=tmp_path,
    )
    assert outcome(process, number) == (status, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number, status, line", ENDS)
def test_the_main_thread_stands_still_also_when_it_hears_of_the_signal_late(
    number, status, line, tmp_path
):
    process = start(
        """
        import hashlib
        steps = 0
        def look():
            time.sleep(0.5)
            before = steps
            time.sleep(0.3)
            if steps > before: os.mkdir("it went on")
        with interrupts.cleaning_up(look):
            ready()
            while True:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 30_000)  # some hundredths of a second in C code
                steps += 1
        """,
        cwd=tmp_path,
    )
    assert outcome(process, number) == (status, line)
    assert list(tmp_path.iterdir()) == []


def test_a_clean_up_that_hangs_is_left():
    process = start(
        """
        with interrupts.cleaning_up(lambda: time.sleep(1000)):
            ready()
            time.sleep(1000)
        """
    )
    assert outcome(process, signal.SIGINT) == (130, "interrupted\n")


def test_what_must_be_whole_is_finished_first(tmp_path):
    process = start(
        """
        with interrupts.whole():
            ready()
            open("one", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            open("other", "w").close()
        open("after", "w").close()
        """,
        cwd=tmp_path,
    )
    _, stderr = process.communicate(timeout=LIMIT)
    assert (process.returncode, stderr) == (143, "terminated\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_sigterm_can_be_given_another_meaning():
    code = """
        stop = threading.Event()
        interrupts.on_terminate(stop.set)
        ready()
        while not stop.is_set(): time.sleep(0.01)
        interrupts.leave(7)
        """
    assert outcome(start(code), signal.SIGTERM) == (7, "")
    assert outcome(start(code), signal.SIGINT) == (130, "interrupted\n")


def test_a_signal_that_was_ignored_stays_ignored():
    process = start(
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)\nready()\ninterrupts.leave(5)",
        before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert outcome(process, signal.SIGINT) == (5, "")


def test_a_forked_child_dies_as_children_do():
    process = start(
        """
        child = os.fork()
        if not child: time.sleep(1000)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        ready()
        interrupts.leave(os.WTERMSIG(status))
        """
    )
    process.communicate(timeout=LIMIT)
    assert process.returncode == signal.SIGTERM


def test_what_was_printed_is_written_and_exit_functions_run():
    process = start(
        """
        import atexit
        atexit.register(lambda: print("at exit"))
        ready()
        print("printed")
        interrupts.leave(3)
        """
    )
    assert process.stdout is not None and process.stderr is not None
    with (
        process
    ):  # its streams are read to their ends; `communicate` would miss what has been read ahead
        assert process.stdout.read() == "printed\nat exit\n"
        assert process.stderr.read() == ""
    assert process.returncode == 3


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path):
    code = GUARDED + "print(open(sys.argv[1], 'w').fileno(), file=sys.stdout)"
    path = tmp_path / "file"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" "$2" 2>&-', sys.executable, code, path],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert int(done.stdout) > 2


@pytest.mark.parametrize(
    "argv, original, package, command",
    [
        (["-m"], ["python", "-m", "analyze.lifecycle"], "analyze", True),
        (["-m", "--tau", "3"], ["python", "-m", "train", "--tau", "3"], "train", True),
        (["-m"], ["python", "-Bmtrain.prepare"], "train", True),
        (["-m"], ["python", "-m", "sysout_jax.convert"], "sysout_jax", True),
        (["-m"], ["python", "-m", "sysout_jax.other"], "sysout_jax", False),
        (["-m"], ["python", "-m", "pytest"], "sysout_jax", False),
        (["-m"], ["python", "-m", "train"], "a package of the user's own", False),
        (["/x/train/__main__.py"], ["python", "-m", "train"], "train", False),  # long after
        (["-c"], ["python", "-c", "import sysout_jax"], "sysout_jax", False),
        ([], [], "sysout_jax", False),
    ],
)
def test_only_our_own_commands_are_guarded(argv, original, package, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    beside = Path(interrupts.__file__).parents[1]
    for name in ("analyze", "train"):
        module = type(sys)(name)
        where = beside if package == name else Path("/somewhere/else")
        module.__file__ = str(where / name / "__init__.py")
        monkeypatch.setitem(sys.modules, name, module)
    assert interrupts._is_command() is command


def test_importing_the_library_installs_nothing():
    assert interrupts._wake is None
    assert signal.getsignal(signal.SIGINT) is not interrupts._stand_still
