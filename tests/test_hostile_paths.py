"""What is no readable file where one is expected (a FIFO, a device, a directory, a dangling link) costs one line and never hangs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.checkpoints.formats.safetensors import INDEX, SINGLE
from sysout_jax.data import tokenizers
from sysout_jax.data.text import read_text
from sysout_jax.data.tokenizers import byte_tokenizer
from sysout_jax.outliers.tokens import TokenClasses
from tests.limits import within

DEEP = "[" * 200_000


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


STRANGE = {
    "fifo": _fifo,
    "socket": _socket,
    "directory": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to(path.parent / "nothing"),
    "loop": lambda path: path.symlink_to(path),
    "empty": Path.touch,
}


def refusal(call, *args, **kwargs) -> str:
    """The one line with which a call refuses."""
    with within(), pytest.raises(so.InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1200
    return message


@pytest.fixture(params=STRANGE)
def strange(request, tmp_path) -> Path:
    """A path that is no readable file."""
    path = tmp_path / "it"
    STRANGE[request.param](path)
    return path


def test_as_a_model(strange):
    assert str(strange) in refusal(so.load, strange)
    named = strange.with_name("model.bin")
    strange.rename(named) if not strange.is_symlink() else named.symlink_to(strange)
    assert str(named) in refusal(so.load, named)


def test_as_a_text(strange):
    assert str(strange) in refusal(read_text, strange)


def test_as_token_classes(strange):
    assert str(strange) in refusal(TokenClasses.from_file, strange)


def test_as_a_tokenizer(strange):
    assert str(strange) in refusal(tokenizers.load, str(strange))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
@pytest.mark.parametrize("kind", STRANGE)
def test_within_a_hugging_face_directory(hf_copy, kind, name):
    directory = hf_copy("gpt2")
    (directory / name).unlink(missing_ok=True)
    without_single(directory, name)
    STRANGE[kind](directory / name)
    assert str(directory) in refusal(so.load, directory)


def without_single(directory: Path, name: str) -> None:
    """An index is read where the one file is not there."""
    if name == INDEX:
        (directory / SINGLE).unlink()


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["model.json", "params", "tokenizer.json"])
def test_within_a_converted_directory(converted, kind, name):
    (converted / name).rename(converted / "moved")
    STRANGE[kind](converted / name)
    assert str(converted) in refusal(so.load, converted)


@pytest.fixture
def converted(tmp_path) -> Path:
    """A small converted model with a tokenizer."""
    from sysout_jax.checkpoints import checkpoint
    from tests.random_models import random_model

    lm = random_model("gpt2", 0, num_layers=2)
    checkpoint.save(tmp_path / "ours", lm.config, lm.source, "float32", byte_tokenizer(), 1)
    return tmp_path / "ours"


@pytest.mark.parametrize(
    "path", ["x" * 4000, "a\0b", "~nobody-here/x", "\udcff", "", ".", "\x1b[2J", "a/" * 3000]
)
def test_odd_paths(path):
    refusal(so.load, path)
    refusal(tokenizers.load, path)


@pytest.mark.parametrize("path", [None, 3, b"x", ["x"], np.zeros(3)])
def test_what_is_no_path(path):
    assert "expected a path or a hub id" in refusal(so.load, path)


@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 200_000, '{"a": ' + "9" * 5000 + "}", "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_json_that_python_cannot_read(hf_copy, name, text):
    directory = hf_copy("gpt2")
    without_single(directory, name)
    (directory / name).write_bytes(text.encode(errors="surrogateescape"))
    assert str(directory / name) in refusal(so.load, directory)


def test_deep_json_of_ours(converted, tmp_path):
    (converted / "model.json").write_text(DEEP)
    assert str(converted / "model.json") in refusal(so.load, converted)
    (tmp_path / "classes.json").write_text(DEEP)
    assert "nested too deeply" in refusal(TokenClasses.from_file, tmp_path / "classes.json")


def rewrite(path, **changes) -> None:
    """Change fields of a config, and say that it is meant: without the checksum that our own configs carry."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if k != "checksum"}))


@pytest.mark.parametrize("value", [True, "1", 1.0, [1], {}])
def test_a_bos_id_of_the_wrong_type(converted, hf_copy, value):
    for directory, name in ((converted, "model.json"), (hf_copy("gpt2"), "config.json")):
        rewrite(directory / name, bos_token_id=value)
        message = refusal(so.load, directory)
        assert "bos_token_id is " in message and "expected a whole number, or null" in message


@pytest.mark.parametrize("value", [-1, 61, 2**31, 2**63, 10**30])
def test_a_bos_id_outside_the_vocabulary_matters_where_it_is_asked_for(converted, hf_copy, value):
    rewrite(hf_copy("gpt2") / "config.json", bos_token_id=value)
    so.load(converted.parent / "gpt2")
    rewrite(converted / "model.json", bos_token_id=value)
    tokenizer = so.load(converted).tokenizer
    assert tokenizer is not None and tokenizer.bos_id is None
    from sysout_jax.data.text import prompt_sequence

    assert prompt_sequence(tokenizer, "ab", False).shape == (1, 2)
    assert "names no bos_token_id of its vocabulary" in refusal(
        prompt_sequence, tokenizer, "ab", True
    )


@pytest.mark.parametrize("layers", [3, 10_000, 10**6, 10**9])
def test_more_layers_than_a_converted_directory_holds(converted, layers):
    config = json.loads((converted / "model.json").read_text())["config"]
    rewrite(converted / "model.json", config=config | {"num_layers": layers})
    assert f"{layers}"[:3] in refusal(so.load, converted)


# --- dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(converted, dtype):
    import jax.numpy as jnp

    for spelt in (dtype, jnp.dtype(dtype), getattr(jnp, dtype), jnp.dtype(dtype).type):
        assert so.load(converted, spelt).dtype == dtype


@pytest.mark.parametrize(
    "dtype",
    [*["int8", "bool", "float64", "f4", ">f4", "float", "complex64", "O", "V4", "float8_e4m3fn", "", "x" * 10**6],
     None, 3, float, int, bool, object, np.float64, np.int8, np.dtype(">f4"), [], {}, b"float32"],
)  # fmt: skip
def test_other_dtypes(converted, dtype):
    assert "expected float32, bfloat16 or float16" in refusal(so.load, converted, dtype)
