"""`so.load`: find out what lies at a path and open it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from sysout_jax.calls import check_texts
from sysout_jax.checkpoints import checkpoint
from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.convert import llama2c_tokenizer
from sysout_jax.convert.gguf import open_gguf
from sysout_jax.convert.gguf_file import is_gguf
from sysout_jax.convert.gguf_tokenizer import read_gguf_tokenizer
from sysout_jax.convert.hf_config import read_config
from sysout_jax.convert.hf_tokenizer import MERGES, PIECES, read_hf_tokenizer
from sysout_jax.convert.llama2c import BOS_ID, is_llama2c, open_llama2c
from sysout_jax.convert.llama2c_tokenizer import read_tokenizer_bin
from sysout_jax.convert.nanogpt import open_nanogpt
from sysout_jax.convert.safetensors import SafetensorsSource
from sysout_jax.convert.torch_file import is_torch_file
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer, read_bos_id
from sysout_jax.errors import InputError
from sysout_jax.language_model import DTYPES, LanguageModel
from sysout_jax.printable import printable, printable_name
from sysout_jax.storage.serialise import read_json_object
from sysout_jax.weights import StoredWeights

HF_CONFIG = "config.json"
#: Files of a hub repository that a model may need.
FETCHED = ["*.json", "model*.safetensors", MERGES, PIECES]


class Opened(NamedTuple):
    """What a checkpoint holds, whatever its format."""

    config: ModelConfig
    source: StoredWeights
    bos_id: int | None
    tokenizer: Tokenizer | None
    accepted: tuple[str, ...] = ()


def load(
    path: str | Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    *,
    accept: Collection[str] = (),
) -> LanguageModel:
    """Open a checkpoint of any of the `FORMATS`, or a Hugging Face hub id (extra `hf`).

    Names, shapes and settings are all checked now; the weights themselves are read when they are used. `dtype` is that of
    weights and compute, `mesh` spreads analyses over devices (`sysout_jax.sharding.make_mesh`). `accept` names settings of its config
    that this library does not know and that you know to change nothing. Raises InputError, with one line to act on, for everything that
    is wrong with the checkpoint; UnknownSettings, which is one, for settings to accept.
    """
    dtype = _dtype_name(dtype)
    names = tuple(check_texts("accept", accept))
    config, source, _, tokenizer, accepted = open_checkpoint(find(path), names)
    return LanguageModel(config, source, tokenizer, dtype, str(path), mesh=mesh, accepted=accepted)


def _dtype_name(dtype: Any) -> str:
    """The name of one of `DTYPES`, given as that word or as a dtype of numpy or jax."""
    name = dtype
    if not isinstance(dtype, str | bytes | None):
        try:
            name = next(name for name in DTYPES if np.dtype(dtype) == np.dtype(name))
        except (TypeError, ValueError, StopIteration):
            name = None
    if isinstance(name, str) and name in DTYPES and dtype is not float:
        return name
    given = str(dtype) if isinstance(dtype, np.dtype | type) else shown(dtype)
    raise InputError(f"dtype is {given}; expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")


def find(path: str | Path) -> Path:
    """The local file or directory behind a path or a hub id; InputError when there is none."""
    if not isinstance(path, str | Path):
        raise InputError(f"a model is {shown(path)}; expected a path or a hub id such as org/name")
    local = os.path.expanduser(path)
    if os.path.lexists(local):
        return Path(local)
    if _looks_like_hub_id(str(path)):
        return _download(str(path))
    raise InputError(
        f"{printable_name(str(path))}: no such file or directory; expected a checkpoint or a hub id such as org/name"
    )


def open_checkpoint(path: Path, accept: Collection[str] = ()) -> Opened:
    """Recognise the format of what lies at `path` and open it; InputError when it is none or not whole."""
    try:
        for its in FORMATS:
            if its.recognises(path):
                return its.open(path, accept)
        holds = ""
        if path.is_dir() and (files := sorted(p.name for p in path.glob("*.pt"))):
            holds = f" (it holds {printable_name(files[0])}; name that file)"
    except OSError as error:
        reason = printable(str(error.strerror or error))
        raise InputError(f"{path}: {reason}; expected a checkpoint that can be read") from None
    raise InputError(
        f"{path}: not a model{holds}; expected {', or '.join(its.name for its in FORMATS)}"
    )


def _open_orbax(path: Path, accept: Collection[str]) -> Opened:
    found = checkpoint.locate(path)
    assert found is not None
    held, written = None, None
    if found.is_of_run:
        found, held, written = checkpoint.open_run(path)
    config, bos_id = checkpoint.read_config(found.home)
    if found.is_of_run:
        source = checkpoint.OrbaxSource(found.params, config, written, held)
    else:
        source = checkpoint.open_converted(found.home, config)
    accepted = checkpoint.read_accepted(found.home)
    return Opened(config, source, bos_id, _tokenizer(found.home, bos_id), accepted)


def _open_hugging_face(path: Path, accept: Collection[str]) -> Opened:
    file = path / HF_CONFIG
    fields = read_json_object(file, "download it again")
    layout, config, accepted = read_config(fields, str(file), accept)
    bos_id = read_bos_id(fields, config.vocab_size, str(file))
    source = SafetensorsSource(path, layout, config)
    tokenizer = read_hf_tokenizer(path, bos_id, fields.get("model_type"))
    if tokenizer and tokenizer.bos_id != bos_id:
        bos_id = tokenizer.bos_id = read_bos_id(
            {"bos_token_id": tokenizer.bos_id}, config.vocab_size, str(path)
        )
    return Opened(config, source, bos_id, tokenizer, accepted)


def _open_nanogpt(path: Path, accept: Collection[str]) -> Opened:
    config, source = open_nanogpt(path)
    return Opened(config, source, None, _tokenizer(path.parent, None))


def _open_llama2c(path: Path, accept: Collection[str]) -> Opened:
    config, source = open_llama2c(path)
    tokenizer = _tokenizer(path.parent, BOS_ID)
    pieces = path.parent / llama2c_tokenizer.FILE
    if tokenizer is None and os.path.lexists(pieces):
        tokenizer = read_tokenizer_bin(pieces, config.vocab_size, BOS_ID)
    return Opened(config, source, BOS_ID, tokenizer)


def _open_gguf(path: Path, accept: Collection[str]) -> Opened:
    config, source, fields, accepted = open_gguf(path, accept)
    inside = read_gguf_tokenizer(path, fields)
    bos_id = inside.bos_id if inside else None
    return Opened(config, source, bos_id, _tokenizer(path.parent, bos_id) or inside, accepted)


class Format(NamedTuple):
    """A kind of checkpoint."""

    name: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Collection[str]], Opened]


#: Every kind of checkpoint that opens; the first that recognises a path has it.
FORMATS = (
    Format(
        f"a directory that python -m sysout_jax.convert or python -m train wrote ({checkpoint.CONFIG})",
        lambda path: path.is_dir() and checkpoint.locate(path) is not None,
        _open_orbax,
    ),
    Format(
        f"a Hugging Face directory ({HF_CONFIG} and safetensors)",
        lambda path: (path / HF_CONFIG).is_file(),
        _open_hugging_face,
    ),
    Format("a GGUF file (.gguf)", is_gguf, _open_gguf),
    Format("a nanoGPT checkpoint (ckpt.pt)", is_torch_file, _open_nanogpt),
    Format("a llama2.c model (.bin)", is_llama2c, _open_llama2c),
)


def _tokenizer(directory: Path, bos_id: int | None) -> Tokenizer | None:
    file = directory / tokenizers.FILE
    # a dangling link is a damaged tokenizer, not a model without one
    return Tokenizer.from_file(file, bos_id) if os.path.lexists(file) else None


def _looks_like_hub_id(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 2 and all(part and part not in (".", "..", "~") for part in parts)


def _download(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{repo_id}: no such file or directory; to fetch it from the hub, pip install 'sysout_jax[hf]'"
        ) from None
    try:
        # some repositories hold the weights twice, as consolidated.safetensors, or other models in folders
        folder = snapshot_download(repo_id, allow_patterns=FETCHED, ignore_patterns=["*/*"])
    except (
        Exception
    ) as error:  # the hub client raises dozens of types; to the user all mean "not fetched"
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{repo_id}: no such file or directory, and not fetched from the hub ({type(error).__name__}: {reason}); "
            "check the name, the network and your access"
        ) from None
    return Path(folder)
