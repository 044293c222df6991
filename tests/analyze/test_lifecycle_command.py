"""The command as people call it: what it writes, and one clear line for everything that cannot work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analyze.lifecycle import main
from tests.analyze import command
from tests.analyze.command import CONFIG, tree, words

pytestmark = pytest.mark.slow

FIGURES = {"where", "activations", "weights", "attention", "birth", "spread", "death"}


def call(monkeypatch, *flags) -> int:
    return command.call(monkeypatch, main, *flags)


def edit_config(model: Path, **fields) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | fields))


def truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def name_a_missing_shard(model: Path) -> None:
    weight_map = dict.fromkeys(
        load_file(model / "model.safetensors"), "model-00001-of-00002.safetensors"
    )
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / "model.safetensors").unlink()


def smaller_vocabulary(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:60].copy()
    save_file(tensors, model / "model.safetensors")
    edit_config(model, vocab_size=60)


DAMAGES = {
    "not a model directory": (lambda m: (m / "config.json").unlink(), "not a model"),
    "truncated safetensors": (truncate, "not a whole safetensors file"),
    "missing shard": (name_a_missing_shard, "model-00001-of-00002.safetensors"),
    "wrong shape": (lambda m: edit_config(m, intermediate_size=25), "the config implies"),
    "unknown architecture": (
        lambda m: edit_config(m, model_type="mamba"),
        "architecture 'mamba' is unknown",
    ),
    "missing tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer"),
    "vocabulary smaller than ids": (smaller_vocabulary, "vocabulary has 60"),
    "no BOS": (lambda m: edit_config(m, bos_token_id=None), "names no bos_token_id"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(damage, model, tmp_path, monkeypatch, capsys):
    apply, expected = DAMAGES[damage]
    apply(model)
    before = tree(tmp_path)
    flags = ["--bos"] if damage == "no BOS" else []
    assert (
        call(
            monkeypatch,
            "--ckpt",
            model,
            "--prompt",
            "Summer is warm.",
            "--out",
            tmp_path / "out",
            *flags,
        )
        == 2
    )
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def bad_flags(tmp_path: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "words.txt").write_text("Summer is warm. " * 20)
    (tmp_path / "file").write_text("here")
    prompt = ["--prompt", "Summer is warm."]
    words = ["--text", tmp_path / "words.txt"]
    return {
        "missing path": ([*prompt, "--ckpt", tmp_path / "nowhere"], "no such file or directory"),
        "file as checkpoint": ([*prompt, "--ckpt", tmp_path / "file"], "not a model"),
        "missing text": (["--text", tmp_path / "nowhere.txt"], "No such file"),
        "empty text": (["--text", tmp_path / "empty.txt"], "holds no text"),
        "binary text": (["--text", tmp_path / "binary.txt"], "not UTF-8"),
        "zero tokens": (["--prompt", ""], "gives no token"),
        "text and prompt": ([*words, *prompt], "exclude each other"),
        "prompt longer than the context": (["--prompt", "a" * 65], "context of 64"),
        "windows longer than the context": ([*words, "--seq-len", 65], "context is 64"),
        "zero tau": ([*prompt, "--tau", 0], "positive threshold"),
        "negative tau": ([*prompt, "--tau", -1], "positive threshold"),
        "no sequences": ([*words, "--num-seqs", 0], "at least 1"),
        "output is a file": ([*prompt, "--out", tmp_path / "file"], "is a file"),
        "output below a file": ([*prompt, "--out", tmp_path / "file" / "x"], "is a file"),
        "unknown dtype": ([*prompt, "--dtype", "float12"], "float12"),
    }


FLAG_CASES = [
    "missing path", "file as checkpoint", "missing text", "empty text", "binary text", "zero tokens", "text and prompt",
    "prompt longer than the context", "windows longer than the context", "zero tau", "negative tau", "no sequences",
    "output is a file", "output below a file", "unknown dtype",
]  # fmt: skip


@pytest.mark.parametrize("name", FLAG_CASES)
def test_bad_flags(name, model, tmp_path, monkeypatch, capsys):
    flags, expected = bad_flags(tmp_path)[name]
    before = tree(tmp_path)
    usual = {"--ckpt": model, "--out": tmp_path / "out"}
    rest = [word for flag in usual.keys() - set(flags) for word in (flag, usual[flag])]
    assert call(monkeypatch, *rest, *flags) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_the_help_lists_the_dtypes(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    assert "--dtype {float32,bfloat16,float16}" in capsys.readouterr().out


def test_unwritable_output(model, tmp_path, monkeypatch, capsys):
    def refuse(*_):  # tests may run as root, who may write everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    assert call(monkeypatch, "--ckpt", model, "--prompt", "Summer", "--out", tmp_path / "out") == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def check_outputs(out: Path, figures: set[str]) -> dict:
    report = json.loads(
        (out / "lifecycle.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON")
    )
    for name in figures:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (out / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "http://" not in page and "https://" not in page
    assert {p.name for p in out.iterdir()} == {"lifecycle.json", "report.html", "figures"}
    return report


def test_report_on_a_prompt(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert (
        call(
            monkeypatch,
            "--ckpt",
            model,
            "--prompt",
            "Summer is warm. Winter is cold.\n",
            "--out",
            out,
        )
        == 0
    )
    printed = capsys.readouterr()
    assert printed.err == ""  # quiet in a pipe
    assert "no activation outlier at τ = 1000" in words(printed.out)
    assert printed.out.count("\n") <= 26  # 24 where paths are short
    report = check_outputs(out, FIGURES)
    assert not report["found"] and report["candidate"]["birth"]["layer"] is not None
    assert report["settings"]["kernel"] == "blockwise"
    assert report["settings"]["config"]["d_model"] == 16


def test_nan_weights_are_reported(model, tmp_path, monkeypatch, capsys):
    tensors = load_file(model / "model.safetensors")
    save_file({k: np.full_like(v, np.nan) for k, v in tensors.items()}, model / "model.safetensors")
    out = tmp_path / "out"
    assert call(monkeypatch, "--ckpt", model, "--prompt", "Summer is warm.", "--out", out) == 0
    assert "NaN or inf" in words(capsys.readouterr().out)
    check_outputs(out, {"where", "activations", "weights", "attention"})


@pytest.mark.parametrize(
    "flags", [["--prompt", "x"], ["--seq-len", "20", "--num-seqs", "3", "--bos", "--tau", "3"]]
)
def test_runs_on_other_shapes(flags, model, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "--ckpt", model, "--out", tmp_path / "out", *flags) == 0
    check_outputs(tmp_path / "out", {"where", "activations", "weights", "attention"})


def test_real_model_as_a_process_from_any_directory(shared_data, tmp_path):
    """The installed command, on the trained LLaMA, in a directory that knows nothing of the repository."""
    copy = shutil.copytree(shared_data / "aidreams-260k", tmp_path / "aidreams")
    command = [
        sys.executable,
        "-m",
        "analyze.lifecycle",
        "--ckpt",
        copy,
        "--out",
        "report",
        "--num-seqs",
        "8",
        "--seq-len",
        "64",
    ]
    command += ["--text", shared_data / "text" / "wikitext2-test.txt"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = check_outputs(tmp_path / "report", FIGURES)
    assert report["num_sequences"] == 8 and report["length"] == 64
    assert not report["found"]


def test_what_is_odd_about_a_checkpoint_is_said_and_recorded(model, tmp_path, monkeypatch, capsys):
    edit_config(model, eos_token_id=10**9)
    out = tmp_path / "out"
    flags = ("--ckpt", model, "--num-seqs", 1, "--seq-len", 12, "--out", out)
    assert call(monkeypatch, *flags) == 0
    settings = json.loads((out / "lifecycle.json").read_text())["settings"]
    (note,) = [each for each in settings["notes"] if "eos_token_id" in each]
    assert note in words(capsys.readouterr().out)
