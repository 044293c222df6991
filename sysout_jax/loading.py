"""`so.load`: find out what lies at a path and open it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from sysout_jax import checkpoint
from sysout_jax.convert.hf_config import read_config
from sysout_jax.convert.safetensors import SafetensorsSource
from sysout_jax.data import tokenizers
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.weights import WeightSource

HF_CONFIG = "config.json"


def load(path: str | Path, dtype: Any = "float32") -> LanguageModel:
    """Open a Hugging Face directory or hub id (extra `hf`), or what `python -m sysout_jax.convert` or `python -m train` wrote.

    Names, shapes and settings are all checked now; the weights themselves are read when they are used. `dtype` is that of
    weights and compute. Raises InputError, with one line to act on, for everything that is wrong with the checkpoint.
    """
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        raise InputError(
            f"dtype {dtype!r} is unknown; expected for example float32 or bfloat16"
        ) from None
    directory = find(path)
    source: WeightSource
    if orbax := checkpoint.locate(directory):
        directory = orbax.home
        config, bos_id = checkpoint.read_config(directory)
        source = checkpoint.OrbaxSource(orbax.params, config)
    else:
        fields = _read_json(directory / HF_CONFIG)
        layout, config = read_config(fields, str(directory / HF_CONFIG))
        source, bos_id = SafetensorsSource(directory, layout, config), _bos_id(fields)
    file = directory / tokenizers.FILE
    tokenizer = tokenizers.Tokenizer.from_file(file, bos_id) if file.is_file() else None
    return LanguageModel(config, source, tokenizer, dtype.name, str(path))


def read_bos_id(directory: Path) -> int | None:
    """The id that opens a sequence according to a Hugging Face directory, None where it names none."""
    return _bos_id(_read_json(directory / HF_CONFIG))


def _bos_id(fields: dict) -> int | None:
    bos = fields.get("bos_token_id")
    return bos if isinstance(bos, int) else None


def find(path: str | Path) -> Path:
    """The local directory behind a path or a hub id; InputError when there is none."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        if not (directory / HF_CONFIG).is_file() and checkpoint.locate(directory) is None:
            raise InputError(
                f"{path}: not a model directory (no {HF_CONFIG} and no {checkpoint.CONFIG}); "
                "expected a Hugging Face directory, the output of python -m sysout_jax.convert, or a training run"
            )
        return directory
    if directory.exists():
        raise InputError(
            f"{path}: is a file; expected the directory that holds {HF_CONFIG} and the weights"
        )
    if _looks_like_hub_id(str(path)):
        return _download(str(path))
    raise InputError(
        f"{path}: no such directory; expected a model directory or a hub id such as org/name"
    )


def _looks_like_hub_id(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 2 and all(part and part not in (".", "..", "~") for part in parts)


def _download(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{repo_id}: no such directory; to fetch it from the hub, pip install 'sysout_jax[hf]'"
        ) from None
    try:
        folder = snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"])
    except (
        Exception
    ) as error:  # the hub client raises dozens of types; to the user all mean "not fetched"
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{repo_id}: no such directory, and not fetched from the hub ({type(error).__name__}: {reason}); "
            "check the name, the network and your access"
        ) from None
    return Path(folder)


def _read_json(path: Path) -> dict:
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({error}); download it again") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields
