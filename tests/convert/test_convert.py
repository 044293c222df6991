"""python -m sysout_jax.convert: the converted model is the same model, bad input costs one line and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checkpoints.formats.names import stored_names
from sysout_jax.checkpoints.formats.safetensors import SafetensorsSource
from sysout_jax.commands import cli
from sysout_jax.families import ARCHITECTURES, LAYOUTS
from sysout_jax.weights import expected_shapes, groups
from tests.convert.command import (
    ROOT,
    assert_same_model,
    everything_below,
    run_command,
    run_here,
)
from tests.convert.gguf_writer import add_keys
from tests.parity_cases import FIXTURES


def test_command_on_a_trained_model(shared_data, tmp_path):
    src, out = shared_data / "aidreams-260k", tmp_path / "new" / "out"
    done = run_command("--src", src, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and str(out) in done.stdout and "float32" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["model.json", "params", "tokenizer.json"]
    assert [p.name for p in out.parent.iterdir()] == ["out"], "no staging directory is left"

    direct, converted = so.load(src), so.load(out)
    assert_same_model(direct, converted)
    assert direct.tokenizer and converted.tokenizer
    assert converted.tokenizer.bos_id == direct.tokenizer.bos_id == 1
    text = "Once upon a time, there was a dragon."
    assert converted.tokenizer.encode(text) == direct.tokenizer.encode(text)


@pytest.mark.parametrize("case", ["llama-gqa-sharded", "gpt2", "nanogpt"])
def test_converted_equals_direct(case, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, "--src", FIXTURES / case, "--out", tmp_path / "out") == 0
    assert "without a tokenizer" in capsys.readouterr().out
    for dtype in ("float32", "bfloat16"):
        assert_same_model(so.load(FIXTURES / case, dtype), so.load(tmp_path / "out", dtype))


def stored_dtypes(out: Path) -> set[str]:
    source = so.load(out).source
    trees = [source._tree(group.name) for group in (out / "params").iterdir()]  # type: ignore[attr-defined]
    return {str(leaf.dtype) for leaf in jax.tree.leaves(trees)}


def test_dtype(hf_copy, tmp_path, monkeypatch):
    """By default the stored format is kept; --dtype chooses another one."""
    src = hf_copy("llama-tied")
    tensors = load_file(src / "model.safetensors")
    save_file(
        {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, src / "model.safetensors"
    )
    for flags, want in (([], "bfloat16"), (["--dtype", "float16"], "float16")):
        out = tmp_path / want
        out.mkdir()  # an empty directory may be there
        assert run_here(monkeypatch, "--src", src, "--out", out, *flags) == 0
        assert stored_dtypes(out) == {want}
    assert_same_model(so.load(src), so.load(tmp_path / "bfloat16"))


@pytest.fixture
def bad_input(tmp_path):
    """Arguments that cannot work, by what is wrong with them."""
    (tmp_path / "file").write_text("x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "model.json").write_text("{}")
    (tmp_path / "dangling").symlink_to("nothing")
    truncated = Path(shutil.copytree(FIXTURES / "gpt2", tmp_path / "truncated"))
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    good, out = FIXTURES / "gpt2", tmp_path / "out"
    return {
        "no such source": (tmp_path / "nothing" / "here", out),
        "source is a file": (tmp_path / "file", out),
        "source is no model": (tmp_path / "empty", out),
        "source is converted already": (tmp_path / "converted", out),
        "source is truncated": (truncated, out),
        "hub id out of reach": ("nobody/nothing", out),
        "out holds files": (good, full),
        "out is a file": (good, tmp_path / "file"),
        "out lies below a file": (good, tmp_path / "file" / "out"),
        "out is a dangling link": (good, tmp_path / "dangling"),
        "out lies inside the source": (truncated, truncated / "out"),
    }


BAD_INPUT = [
    "no such source",
    "source is a file",
    "source is no model",
    "source is converted already",
    "source is truncated",
    "hub id out of reach",
    "out holds files",
    "out is a file",
    "out lies below a file",
    "out is a dangling link",
    "out lies inside the source",
]


@pytest.mark.parametrize("problem", BAD_INPUT)
def test_bad_input(problem, bad_input, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sysout_jax.loading._download", refuse_to_download)
    src, out = bad_input[problem]
    before = everything_below(tmp_path)
    assert run_here(monkeypatch, "--src", src, "--out", out) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    assert str(out if problem.startswith("out") else src) in said.err
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("format", ["orbax", "hf"])
def test_out_may_be_a_link_to_an_empty_directory(format, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    args = ("--src", FIXTURES / "gpt2", "--out", tmp_path / "out", "--format", format)
    assert run_here(monkeypatch, *args) == 0
    assert_same_model(so.load(FIXTURES / "gpt2"), so.load(tmp_path / "elsewhere"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "out"]


def refuse_to_download(repo_id: str):
    raise so.InputError(f"{repo_id}: not fetched")


@pytest.mark.parametrize("problem", ["source is truncated", "hub id out of reach", "out is a file"])
def test_command_on_bad_input(problem, bad_input, tmp_path):
    """As a user sees it: nothing on stderr but the one line, no leftovers of an import either."""
    before = everything_below(tmp_path)
    done = run_command("--src", bad_input[problem][0], "--out", bad_input[problem][1])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert everything_below(tmp_path) == before


def test_every_bad_input_is_tested(bad_input):
    assert list(bad_input) == BAD_INPUT


@pytest.mark.parametrize("args", [[], ["--src", "a"], ["--src", "a", "--out", "b", "--dtype", "x"]])
def test_wrong_arguments(args, monkeypatch, capsys):
    assert run_here(monkeypatch, *args) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_parent_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    def refuse(*_):  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    args = ("--src", FIXTURES / "gpt2", "--out", tmp_path / "deep" / "out")
    assert run_here(monkeypatch, *args) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert not everything_below(tmp_path)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "sysout_jax.checkpoints.checkpoint.config_to_dict", full
    )  # the weights are written by then
    args = ("--src", FIXTURES / "gpt2", "--out", tmp_path / "out")
    assert run_here(monkeypatch, *args) == 1  # good input, but it cannot go on
    assert "No space left on device" in capsys.readouterr().err
    assert not everything_below(tmp_path)


def llama_fields(*, hidden_size: int, **sizes: int) -> dict[str, str | int]:
    """A config.json of heads 64 wide and an MLP four times as wide as the model."""
    return {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_attention_heads": hidden_size // 64,
        "max_position_embeddings": 64,
        **sizes,
    }


def test_reading_holds_one_tensor_beyond_what_it_returns(tmp_path):
    fields = llama_fields(vocab_size=64, hidden_size=256, num_hidden_layers=1)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = read_config(fields, "test").config
    shapes = expected_shapes(config)
    stored = stored_names(LAYOUTS["llama"].names, shapes)
    weights = {
        stored[ours].name: np.ones(stored[ours].form.shapes(shape, config)[0], np.float32)
        for ours, shape in shapes.items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    largest = max(tensor.nbytes for tensor in weights.values())
    del weights

    source = SafetensorsSource(tmp_path, "llama", config)
    held = []
    tracemalloc.start()
    try:
        for group in groups(config):
            held.append(source.read(group, ml_dtypes.bfloat16))
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    returned = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    slack = 2**17  # headers and Python objects
    assert returned <= now <= returned + slack
    # the layer's last tensor is the largest: its stored form and all that is returned, and no second stored tensor
    assert peak <= returned + largest + slack


def safetensors_of_holes(model: Path, fields: dict) -> tuple[int, int]:
    """A Hugging Face directory of this config, all zeros and nothing on disk; its bytes as float32, and those of its largest tensor."""
    model.mkdir()
    (model / "config.json").write_text(json.dumps(fields))
    config = read_config(fields, "test").config
    stored = stored_names(LAYOUTS["llama"].names, expected_shapes(config))
    header, end, largest = {}, 0, 0
    for ours, shape in expected_shapes(config).items():
        size = 4 * int(np.prod(shape))
        shape = stored[ours].form.shapes(shape, config)[0]
        place = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        header[stored[ours].name] = place
        end, largest = end + size, max(largest, size)
    written = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    return end, largest


def gguf_of_holes(model: Path, fields: dict) -> tuple[int, int]:
    """The same as a GGUF file with matrices in Q8_0."""
    config = read_config(fields, "test").config
    names = ARCHITECTURES["llama"]["llama"].names
    stored = stored_names(names, expected_shapes(config))
    writer = gguf.GGUFWriter(model, "llama")
    add_keys(writer, fields | {"rms_norm_eps": 1e-6})
    total, largest, held = 0, 0, 0
    for ours, shape in expected_shapes(config).items():
        size = 4 * int(np.prod(shape))
        total, largest = total + size, max(largest, size)
        shape = stored[ours].form.shapes(shape, config)[0]
        if len(shape) == 1:
            writer.add_tensor_info(stored[ours].name, shape, np.dtype(np.float32), size)
        else:
            shape, size = (shape[0], shape[1] // 32 * 34), size // 128 * 34
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor_info(stored[ours].name, shape, np.dtype(np.uint8), size, kind)
        held += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with model.open("ab") as file:
        file.truncate(-(-model.stat().st_size // 32) * 32 + held)
    return total, largest


@pytest.mark.endurance
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("holes", "form"),
    [(safetensors_of_holes, "orbax"), (safetensors_of_holes, "hf"), (gguf_of_holes, "orbax")],
)
def test_command_holds_two_tensors_and_500_mb(holes, form, tmp_path):
    """Of a model of 2.5 GB in holes on disk; memory is what the process itself asked for, without the pages of files."""
    fields = llama_fields(vocab_size=30_000, hidden_size=1024, num_hidden_layers=32)
    model = tmp_path / "model"
    total, largest = holes(model, fields)
    limit = 2 * largest + 500 * 10**6
    assert total > 3 * limit  # what holds the model fails
    program = (
        "import sys; from sysout_jax.commands import cli; from sysout_jax.convert import __main__ as convert;"
        "from pathlib import Path; import threading, time; most = [0]\n"
        "def held(): return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0]) * 1024\n"
        "def watch():\n while True: most[0] = max(most[0], held()); time.sleep(0.005)\n"
        "threading.Thread(target=watch, daemon=True).start(); before = held()\n"
        "convert.main(); print(most[0] - before)"
    )
    flags = ("--src", model, "--out", tmp_path / "out", "--format", form)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < limit


# --- how a command ends


def test_status_of_a_command(capsys):
    def fail():
        raise so.InputError("given\n  this, expected that")

    def interrupt():
        raise KeyboardInterrupt

    for main, status in ((lambda: None, 0), (fail, 2), (interrupt, 130)):
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        assert caught.value.code == status
    assert capsys.readouterr().err == "error: given this, expected that\ninterrupted\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.run(lambda: print(1 / 0))


def test_a_reader_that_leaves_early_causes_no_traceback():
    code = "from sysout_jax.commands import cli; cli.run(lambda: print('x\\n' * 10**6))"
    command = f'"{sys.executable}" -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, "x\n", "")
