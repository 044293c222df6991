"""What is unfinished never shows, never takes somebody else's place, and goes with the next run when its process was killed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sysout_jax.errors import InputError, RunError
from sysout_jax.storage import staging, workspaces
from sysout_jax.storage.staging import new_directory, write_file
from sysout_jax.storage.workspaces import MARKER
from tests.analyze.command import tree

ROOT = Path(__file__).resolve().parents[2]


def in_the_way(kind: str, place: Path, elsewhere: Path) -> None:
    """Something of somebody else's where a temporary directory would be made."""
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    if kind == "directory":
        shutil.copytree(elsewhere, place)
    elif kind == "empty directory":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    elif kind == "link to a directory":
        place.symlink_to(elsewhere)
    elif kind == "dangling link":
        place.symlink_to(elsewhere / "nothing")
    elif kind == "loop":
        place.symlink_to(place)
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory with a marker that is a link":
        shutil.copytree(elsewhere, place)
        (place / MARKER).symlink_to(elsewhere / "precious")
    elif kind == "directory with another marker":
        shutil.copytree(elsewhere, place)
        (place / MARKER).write_text("")


IN_THE_WAY = [
    "directory",
    "empty directory",
    "file",
    "link to a directory",
    "dangling link",
    "loop",
    "fifo",
    "directory with a marker that is a link",
    "directory with another marker",
]


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_stays(kind, tmp_path):
    in_the_way(kind, tmp_path / ".out.partial", tmp_path / "elsewhere")
    before = names_and_contents(tmp_path)
    with new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("whole")
    assert tree(tmp_path / "out") == {"file": b"whole"}
    shutil.rmtree(tmp_path / "out")
    assert names_and_contents(tmp_path) == before


def names_and_contents(directory: Path) -> dict[str, object]:
    """Everything below a directory, links as links."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else path.lstat().st_mode
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize("name", ["model.json.tmp", ".model.json.partial"])
def test_a_file_of_the_users_survives_a_write_beside_it(name, tmp_path):
    (tmp_path / name).write_text("mine")
    write_file(tmp_path / "model.json", b"{}")
    assert names_and_contents(tmp_path) == {name: b"mine", "model.json": b"{}"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_alone(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    write_file(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_file(tmp_path / "file", b"new")
    assert names_and_contents(tmp_path) == {"file": b"old"}


@contextlib.contextmanager
def killed(code: str):
    """A process that ran `code`, said so and was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint('ready', flush=True)\nimport time; time.sleep(600)"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def enter(call: str) -> str:
    return (
        f"from pathlib import Path\nfrom sysout_jax.storage import staging, workspaces\nblock = {call}\n"
        "directory = block.__enter__()\n(directory / 'd').mkdir()\n(directory / 'd/half').write_text('x')"
    )


@pytest.mark.slow
def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path):
    code = enter(f"staging.new_directory(Path({str(tmp_path / 'out')!r}))")
    with killed(code):
        before = names_and_contents(tmp_path)
        with pytest.raises(InputError, match="another process is writing"):  # it is alive
            new_directory(tmp_path / "out").__enter__()
        assert names_and_contents(tmp_path) == before
    assert list(tmp_path.iterdir())
    with new_directory(tmp_path / "out") as directory:
        assert not list(directory.iterdir())
        (directory / "file").write_text("whole")
    assert names_and_contents(tmp_path).keys() == {"out", "out/file"}


def test_what_a_killed_process_left_a_link_to_stays(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(workspaces, "_remove", lambda path: None)
        with workspaces.workspace(tmp_path, "out") as work:
            (work / "d").mkdir()
            for link in (work / "link", work / "d" / "link"):
                link.symlink_to(tmp_path / "elsewhere")
            raise KeyboardInterrupt
    write_one(tmp_path / "out")
    assert names_and_contents(tmp_path).keys() == {
        "elsewhere",
        "elsewhere/precious",
        "out",
        "out/file",
    }


@pytest.mark.slow
def test_workspaces_of_living_processes_stay_and_of_killed_ones_go(tmp_path):
    """Two that write the same report at once have one each."""
    code = enter(f"workspaces.workspace(Path({str(tmp_path)!r}), 'report')")
    with killed(code), killed(code):
        both = sorted(path.name for path in tmp_path.iterdir())
        assert len(both) == 2
        with workspaces.workspace(tmp_path, "report") as third:
            assert third.name not in both
        assert sorted(path.name for path in tmp_path.iterdir()) == both
    with workspaces.workspace(tmp_path, "report") as again:
        assert [path.name for path in tmp_path.iterdir()] == [again.name] == [both[0]]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the child calls nothing of jax
def test_killed_before_any_call_of_the_system(tmp_path):
    """Whenever a process ends, what it leaves is whole, or recognised and removed by the next one."""
    for step in itertools.count(1):
        place = tmp_path / str(step)
        killed = run_and_die(step, lambda place=place: write_one(place / "deep" / "out"))
        whole = (place / "deep" / "out").exists()
        assert whole or killed
        if whole:
            assert tree(place / "deep" / "out") == {"file": b"whole"}
            shutil.rmtree(place / "deep" / "out")
        write_one(place / "deep" / "out")
        assert names_and_contents(place).keys() == {"deep", "deep/out", "deep/out/file"}, step
        if not killed:
            break
    assert step > 20


def write_one(out: Path) -> None:
    with new_directory(out) as directory:
        (directory / "file").write_text("whole")


CALLS = ("open", "mkdir", "rmdir", "unlink", "replace", "write", "close", "fsync", "chmod")


def run_and_die(step: int, run: Callable[[], None]) -> bool:
    """Run in a forked process that is killed before its `step`-th call that could change a file; whether it was."""
    child = os.fork()
    if not child:
        left = [step]

        def counted(name: str):
            whole = getattr(os, name)

            def call(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counted(name))
        try:
            run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_parents_that_somebody_else_filled_stay(error, tmp_path):
    kind = RunError if isinstance(error, OSError) else type(error)
    with pytest.raises(kind), new_directory(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "notes").write_text("mine")
        raise error
    assert names_and_contents(tmp_path).keys() == {"a", "a/notes"}


def test_an_empty_directory_keeps_its_mode(tmp_path):
    (tmp_path / "out").mkdir(mode=0o750)
    write_one(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o750


def test_what_fills_up_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(RunError, match="not written"), new_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("whole")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes").write_text("mine")
    assert names_and_contents(tmp_path).keys() == {"out", "out/notes"}


def test_without_locks_only_what_is_ones_own_is_used(tmp_path, monkeypatch):
    """Some file systems of clusters have none; then nobody can say whether the other process lives."""

    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    with workspaces.workspace(tmp_path, "file") as other:
        monkeypatch.setattr(workspaces.fcntl, "flock", unsupported)
        write_file(tmp_path / "file", b"whole")
        assert names_and_contents(tmp_path).keys() == {
            "file",
            other.name,
            f"{other.name}/.sysout_jax",
        }


# --- where output may go


def places(tmp_path: Path) -> dict[str, tuple[Path, str | None]]:
    """Names that somebody could give, and what is wrong with them as a new directory; None: nothing."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").mkdir()
    for name, target in {
        "to-empty": "empty",
        "to-full": "full",
        "to-file": "file",
        "to-nothing": "nothing",
        "loop": "loop",
    }.items():
        (tmp_path / name).symlink_to(target)
    return {
        "new": (tmp_path / "new", None),
        "deep": (tmp_path / "a" / "b" / "c", None),
        "empty": (tmp_path / "empty", None),
        "link to an empty directory": (tmp_path / "to-empty", None),
        "below a link": (tmp_path / "to-full" / "new", None),
        "up and down": (tmp_path / "full" / ".." / "new", None),
        "file": (tmp_path / "file", "is a file"),
        "below a file": (tmp_path / "file" / "new", "is a file"),
        "link to a file": (tmp_path / "to-file", "is a file"),
        "full": (tmp_path / "full", "with files in it"),
        "link to a full directory": (tmp_path / "to-full", "with files in it"),
        "dangling link": (tmp_path / "to-nothing", "a link that leads nowhere"),
        "below a dangling link": (tmp_path / "to-nothing" / "new", "a link that leads nowhere"),
        "loop": (tmp_path / "loop", "a link that leads nowhere"),
        "long name": (tmp_path / ("x" * 300), "name too long"),
        "nearly too long a name": (tmp_path / ("x" * 252), "name too long"),
        "zero byte": (tmp_path / "a\0b", "null byte"),
        "root": (Path("/"), "with files in it"),
        "parent": (tmp_path / "full" / "..", "with files in it"),
        "here": (Path("."), "this program runs in"),
    }


PLACES = [
    "new", "deep", "empty", "link to an empty directory", "below a link", "up and down", "file", "below a file",
    "link to a file", "full", "link to a full directory", "dangling link", "below a dangling link", "loop", "long name",
    "nearly too long a name", "zero byte", "root", "parent", "here",
]  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_a_place_works_or_is_refused_before(name, tmp_path, monkeypatch):
    given = places(tmp_path)
    assert list(given) == PLACES
    out, problem = given[name]
    monkeypatch.chdir(tmp_path / "here")
    before = names_and_contents(tmp_path)
    if problem:
        with pytest.raises(InputError, match=problem) as checked:
            staging.check_out(out, new=True)
        with pytest.raises(InputError, match=problem), new_directory(out):
            raise AssertionError("too late")
        assert "\n" not in str(checked.value)
        assert names_and_contents(tmp_path) == before
        return
    staging.check_out(out, new=True)
    assert names_and_contents(tmp_path) == before
    write_one(out)
    assert tree(out) == {"file": b"whole"}


@pytest.mark.parametrize("name", ["full", "link to a full directory", "here", "deep", "new"])
def test_reports_go_beside_other_files(name, tmp_path, monkeypatch):
    out = places(tmp_path)[name][0]
    monkeypatch.chdir(tmp_path / "here")
    before = names_and_contents(tmp_path)
    staging.check_out(out, new=False)
    assert names_and_contents(tmp_path) == before


@pytest.mark.parametrize("name", ["file", "dangling link", "loop", "long name", "below a file"])
def test_reports_need_a_directory(name, tmp_path):
    out, problem = places(tmp_path)[name]
    with pytest.raises(InputError, match=problem):
        staging.check_out(out, new=False)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", ["new", "deep", "empty"])
def test_a_place_that_cannot_be_written_to(name, new, tmp_path, monkeypatch):
    """Tried, not asked: tests may run as root, who may write anywhere."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    out = places(tmp_path)[name][0]
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        staging.check_out(out, new=new)


def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch):
    """Good input that cannot be gone on with."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    for new in (True, False):
        with pytest.raises(RunError, match="No space left"):
            staging.check_out(tmp_path / "out", new=new)
    with pytest.raises(RunError, match="No space left"):
        write_one(tmp_path / "out")


def test_an_empty_directory_that_is_a_mount_point(tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(16, "Device or resource busy")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(InputError, match="busy"):
        staging.check_out(tmp_path / "out", new=True)
    assert names_and_contents(tmp_path).keys() == {"out"}


def test_a_place_inside_what_is_read(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for out in ("model/new", "link/new", "link/a/new"):
        with pytest.raises(InputError, match="lies inside"):
            staging.check_out(tmp_path / out, new=True, apart=[tmp_path / "model"])
    staging.check_out(tmp_path / "model-2", new=True, apart=[tmp_path / "model"])


def test_it_is_fast(tmp_path):
    """A generous limit: a check before every command must not be felt."""
    start = time.monotonic()
    for number in range(20):
        staging.check_out(tmp_path / str(number), new=True)
    assert time.monotonic() - start < 5
