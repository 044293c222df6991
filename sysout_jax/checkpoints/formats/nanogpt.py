"""nanoGPT checkpoints (`ckpt.pt`), as Karpathy's train.py and the paper's write them, of every attention variant."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.checkpoints.formats.foreign import ForeignSource, Held
from sysout_jax.checkpoints.formats.format import Format, Opened, tokenizer_beside
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checks import shown
from sysout_jax.config import AttentionName
from sysout_jax.containers.torch_file import TorchFile, TorchTensor, is_torch_file
from sysout_jax.errors import InputError
from sysout_jax.families import LAYOUTS
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.printable import printable_name, some

COMPILED = "_orig_mod."  # torch.compile puts it before every name
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"

#: The paper's model files, by the `model_type` that its train.py records in every checkpoint, and our name for each.
PAPER_MODELS: dict[str, AttentionName] = {
    "gpt2_default": "default",
    "gpt2_vbias": "fixed_bias",
    "gpt2_cabias": "context_bias",
    "gpt2_attn_bias": "attention_bias",
    "gpt2_ca_softmax": "context_scale",
    "gpt2_sigmoid": "sigmoid",
}
#: Which variant the extra tensors of a layer show when the checkpoint does not name its model file.
_BY_EXTRAS: dict[frozenset[str], AttentionName] = {
    frozenset(): "default",
    frozenset({"v_bias"}): "fixed_bias",
    frozenset({"context_scale.0.weight", "context_scale.0.bias"}): "context_scale",
}
_TWO_VARIANTS = frozenset({"k_bias", "v_bias"})


class NanoGptSource(ForeignSource):
    """Weights in a torch file, read tensor by tensor; the optimiser's state stays on the disk."""

    def __init__(self, file: TorchFile, tensors: dict[str, TorchTensor], config: Gpt2Config):
        self._file, self._tensors = file, tensors
        held = {name: Held(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        super().__init__(file.path, LAYOUTS["nanogpt"].names, config, held)

    def _tensor(self, name: str) -> np.ndarray:
        return self._file.read(self._tensors[name])


def open_nanogpt(path: Path) -> tuple[Gpt2Config, NanoGptSource]:
    """Config and weights of a nanoGPT checkpoint; InputError for everything that is wrong with it."""
    file = TorchFile(path)
    root = file.root if isinstance(file.root, dict) else {}
    state, model_args = root.get("model"), root.get("model_args")
    if not isinstance(state, dict) or not isinstance(model_args, dict):
        held = some(map(str, root)) or type(file.root).__name__
        raise InputError(
            f"{path}: not a nanoGPT checkpoint (found: {held}); expected a dict with model and model_args"
        )
    for name, value in model_args.items():
        if not isinstance(value, str | int | float | None):
            raise InputError(
                f"{path}: model_args.{printable_name(str(name))} is a {type(value).__name__}; expected numbers and words only"
            )
    tensors = _named_tensors(file, state)
    _, config, _ = read_config(model_args, f"{path}: model_args")
    if not isinstance(config, Gpt2Config):
        raise InputError(
            f"{path}: model_args are not nanoGPT's; expected n_layer, n_head, n_embd, block_size, bias, vocab_size"
        )
    attention = _variant(path, root.get("config"), tensors)
    config = dataclasses.replace(
        config,
        attention=attention,
        # the published code subtracts the log of the current length, not of the context
        sigmoid_bias="length" if attention == "sigmoid" else "context",
        tied_embeddings=_is_tied(file, tensors),
    )
    return config, NanoGptSource(file, tensors, config)


def _named_tensors(file: TorchFile, state: dict[Any, Any]) -> dict[str, TorchTensor]:
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, TorchTensor):
            raise InputError(
                f"{file.path}: model holds {shown(name)}: {type(tensor).__name__}; expected names and tensors only"
            )
        file.check(name, tensor)
        plain = name.removeprefix(COMPILED)
        if plain in tensors:
            raise InputError(
                f"{file.path}: holds {printable_name(plain)} with and without {COMPILED}; keep one"
            )
        tensors[plain] = tensor
    return tensors


def _variant(path: Path, settings: Any, tensors: dict[str, TorchTensor]) -> AttentionName:
    """By the model file that the checkpoint names (config.model_type), else by the parameters that the variant adds."""
    named = settings.get("model_type") if isinstance(settings, dict) else None
    if named is not None:
        if not isinstance(named, str) or named not in PAPER_MODELS:
            raise InputError(
                f"{path}: config.model_type = {shown(named)} is unknown; expected one of {', '.join(PAPER_MODELS)}"
            )
        return PAPER_MODELS[named]
    known_extras = _TWO_VARIANTS.union(*_BY_EXTRAS)
    extras = {name.partition(".attn.")[2] for name in tensors} & known_extras
    if extras == _TWO_VARIANTS:
        raise InputError(
            f"{path}: k_bias and v_bias belong to two variants; write config.model_type = 'gpt2_cabias' or "
            "'gpt2_attn_bias' into the checkpoint to say which"
        )
    # a mixture is left to the comparison of names, which lists what does not belong
    return _BY_EXTRAS.get(frozenset(extras), "default")


def _is_tied(file: TorchFile, tensors: dict[str, TorchTensor]) -> bool:
    """Whether head and embedding are one tensor, or two that hold the same numbers."""
    if HEAD not in tensors or EMBEDDING not in tensors or tensors[HEAD] == tensors[EMBEDDING]:
        return True
    head, embedding = (file.read(tensors[name]) for name in (HEAD, EMBEDDING))
    return np.array_equal(head, embedding)


def _open(path: Path, accept: Collection[str]) -> Opened:
    config, source = open_nanogpt(path)
    return Opened(config, source, None, tokenizer_beside(path.parent, None))


FORMAT = Format("a nanoGPT checkpoint (ckpt.pt)", is_torch_file, _open)
