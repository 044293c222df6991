"""metrics.jsonl after a loss of power: what is whole stays, what is not is set aside, and neither a resume nor an analysis stops."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from sysout_jax import notices
from sysout_jax.errors import InputError, RunError
from sysout_jax.training.metrics import TensorBoard
from sysout_jax.training.metrics_file import JsonLines, read_metrics
from sysout_jax.training.record import training_record

WHOLE = [
    b'{"step": 1, "loss": 3.0}\n',
    b'{"step": 2, "loss": 2.5}\n',
    b'{"step": 3, "loss": 2.0}\n',
]
DAMAGED = [
    b"\n",
    b"\0" * 40 + b"\n",
    b'{"step": 2, "lo\n',
    b"\xff\xfe{}\n",
    b'"step"\n',
    b"[1, 2]\n",
    b'{"loss": 1.0}\n',
    b'{"step": "2"}\n',
    b'{"step": 1.5, "loss": 1.0}\n',
    b'{"step": 2, "loss": ' + b"9" * 400 + b"}\n",
    b"[" * 100_000 + b"\n",
    '{"step": 2,\u2028"loss'.encode() + b"\n",
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda line: repr(line[:20]))
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_damaged_line(tmp_path, caplog, damaged, at):
    notices.warn_once.cache_clear()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join([*WHOLE[:at], damaged, *WHOLE[at:]]))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    assert len(caplog.records) == 1 and "1 line cannot be read" in caplog.text
    sink = JsonLines(tmp_path, 2)
    sink.write({"step": 3, "loss": 2.0})
    sink.close()
    assert path.read_bytes() == b"".join(WHOLE)
    assert (tmp_path / "metrics.jsonl.unreadable").read_bytes() == damaged
    assert len(caplog.records) == 2 and "metrics.jsonl.unreadable" in caplog.records[1].getMessage()


def test_a_missing_file_is_told_on_a_resume_only(tmp_path, caplog):
    JsonLines(tmp_path, 0).close()
    assert not caplog.records
    (tmp_path / "metrics.jsonl").unlink()
    JsonLines(tmp_path, 2).close()
    assert "metrics.jsonl: is missing; what the steps up to 2 recorded is lost" in caplog.text


def test_a_warning_holds_no_escape_codes(tmp_path, caplog):
    run = tmp_path / "\x1b[2J"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b"\n")
    JsonLines(run, 0).close()
    (line,) = caplog.messages
    assert line.isprintable() and r"\x1b[2J/metrics.jsonl: 1 line cannot be read" in line


def test_a_half_line_at_the_end_is_what_a_kill_leaves(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(WHOLE) + b'{"step": 4, "lo')
    assert len(read_metrics(tmp_path)) == 3
    JsonLines(tmp_path, 9).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(WHOLE)
    assert not caplog.records and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line(tmp_path):
    class Full:
        def write(self, line):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    sink = JsonLines(tmp_path, 0)
    sink._file.close()
    sink._file = Full()
    with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written \(No space left"):
        sink.write({"step": 1})
    sink.close()


def test_a_file_that_takes_half_a_line_at_a_time(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, line):
            return self.file.write(line[:5])

    sink = JsonLines(tmp_path, 0)
    sink._file = Slow(sink._file)
    sink.write({"step": 1, "loss": 2.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}]


def test_what_tensorboard_cannot_write_is_one_line(tmp_path, monkeypatch):
    def writer(path):
        raise FileExistsError(17, "File exists", path)

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=writer))
    with pytest.raises(RunError, match=r"tensorboard: cannot be written \(File exists\)"):
        TensorBoard(tmp_path)


def test_a_directory_in_its_place(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="metrics.jsonl"):
        read_metrics(tmp_path)
    with pytest.raises(RunError, match="metrics.jsonl"):
        JsonLines(tmp_path, 0)


def write_run(directory: Path, rows: list) -> None:
    (directory / "model.json").write_text("{}")
    (directory / "checkpoints").mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_records_whose_values_are_of_another_kind(tmp_path):
    """JSON all the same: an analysis leaves them out."""
    write_run(
        tmp_path,
        [
            {"step": 1, "loss": 3.0},
            {"step": 2, "loss": "2.0"},
            {"step": 3, "loss": None},
            {"step": 4, "val_loss": [1.0]},
            {"step": 5, "loss": 1.0, "val_loss": 2.0},
            {"step": 6, "monitor": {"h_top1": [1.0, 2.0]}},
            {"step": 7, "monitor": {"h_top1": [1.0, "2"]}},
            {"step": 8, "monitor": {"h_top1": [1.0]}},
            {"step": 9, "monitor": [1.0]},
            {"step": 10, "monitor": {"h_top1": [1.0, 2.0], "logit_max": 1.0}},
            {"step": 11, "monitor": {}},
            {"step": 12, "monitor": {"h_top1": [3.0, 4.0]}},
        ],
    )
    record = training_record(tmp_path)
    assert record is not None
    assert record.steps.tolist() == [1, 5] and record.val_steps.tolist() == [5]
    assert record.monitor_steps.tolist() == [6, 12]
    assert record.monitor["h_top1"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
