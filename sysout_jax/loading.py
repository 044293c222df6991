"""`so.load`: find out what lies at a path and open it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sysout_jax.calls import check_texts
from sysout_jax.checkpoints.formats import gguf, hugging_face, llama2c, nanogpt, orbax
from sysout_jax.checkpoints.formats.format import Opened
from sysout_jax.checks import shown
from sysout_jax.data.demo_checkpoint import SHORT_NAME, demo_checkpoint
from sysout_jax.data.trained_checkpoints import NAMES, trained_checkpoint
from sysout_jax.errors import InputError
from sysout_jax.language_model import DTYPES, LanguageModel
from sysout_jax.printable import printable, printable_name, some

#: Every kind of checkpoint that opens; the first that recognises a path has it.
FORMATS = (orbax.FORMAT, hugging_face.FORMAT, gguf.FORMAT, nanogpt.FORMAT, llama2c.FORMAT)


def load(
    path: str | Path,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    *,
    accept: Collection[str] = (),
) -> LanguageModel:
    """Open a checkpoint of any of the `FORMATS`, a Hugging Face hub id (extra `hf`), `demo`: a pretrained SmolLM2, fetched once, or
    one of the small models that come with the package (`data/trained_checkpoints.py`).

    Names, shapes and settings are all checked now; the weights themselves are read when they are used. `dtype` is that of
    weights and compute, `mesh` spreads analyses over devices (`sysout_jax.sharding.make_mesh`). `accept` names settings of its config
    that this library does not know and that you know to change nothing. Raises InputError, with one line to act on, for everything that
    is wrong with the checkpoint; UnknownSettings, which is one, for settings to accept.
    """
    dtype = _dtype_name(dtype)
    names = tuple(check_texts("accept", accept))
    opened = open_checkpoint(find(path), names)
    return LanguageModel(
        opened.config,
        opened.source,
        opened.tokenizer,
        dtype,
        str(path),
        mesh=mesh,
        accepted=opened.accepted,
        notes=opened.notes,
    )


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


def find(path: str | Path, tell: Callable[[str], object] = lambda line: None) -> Path:
    """The local file or directory behind a path, a hub id, `demo` or the name of a small trained model; InputError when there is none. `tell` hears of the demo's download."""
    if not isinstance(path, str | Path):
        raise InputError(f"a model is {shown(path)}; expected a path or a hub id such as org/name")
    if not str(path):
        raise InputError(
            "a model's path is empty; expected a checkpoint or a hub id such as org/name"
        )
    local = os.path.expanduser(path)
    if os.path.lexists(local):
        return Path(local)
    if str(path) == SHORT_NAME:
        return demo_checkpoint(tell)
    if str(path) in NAMES:
        return trained_checkpoint(str(path))
    if _looks_like_hub_id(str(path)):
        return _download(str(path))
    raise InputError(
        f"{printable_name(str(path))}: no such file or directory; expected a checkpoint or a hub id such as org/name"
    )


def open_checkpoint(path: Path, accept: Collection[str] = ()) -> Opened:
    """Recognise the format of what lies at `path` and open it; InputError when it is none or not whole."""
    try:
        for kind in FORMATS:
            if kind.recognises(path):
                return _noting_names(kind.open(path, accept), accept)
        holds = ""
        if os.path.isdir(path):
            os.stat(os.path.join(path, "."))  # fails where nobody may look at what is in it
        if path.is_dir() and (files := sorted(p.name for p in path.glob("*.pt"))):
            holds = f" (it holds {printable_name(files[0])}; name that file)"
    except OSError as error:
        reason = printable(str(error.strerror or error))
        raise InputError(f"{path}: {reason}; expected a checkpoint that can be read") from None
    raise InputError(
        f"{path}: not a model{holds}; expected {', or '.join(kind.name for kind in FORMATS)}"
    )


def _noting_names(opened: Opened, accept: Collection[str]) -> Opened:
    """Names to accept that no unknown setting has are said: they may be misspelt."""
    idle = sorted(set(accept) - set(opened.accepted))
    if not idle:
        return opened
    note = f"Its config has no unknown setting {some(idle)} to accept: misspelt, not there, or computed with."
    return opened._replace(notes=(*opened.notes, note))


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
        folder = snapshot_download(
            repo_id, allow_patterns=hugging_face.FETCHED, ignore_patterns=["*/*"]
        )
    except (
        Exception
    ) as error:  # the hub client raises dozens of types; to the user all mean "not fetched"
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{repo_id}: no such file or directory, and not fetched from the hub ({type(error).__name__}: {reason}); "
            "check the name, the network and your access"
        ) from None
    return Path(folder)
