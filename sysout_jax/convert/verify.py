"""What was written against what transformers computes from the source: logits and h of every layer, on random tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.engine import capture
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.printable import printable

BATCH, LENGTH = 3, 64


@dataclass(frozen=True)
class Difference:
    """Of two arrays: the largest difference, and the largest value of theirs to hold it against."""

    largest: float
    of: float

    def __str__(self) -> str:
        return f"{self.largest:.2g} of {self.of:.4g}"


@dataclass(frozen=True)
class Verified:
    """Ours from what was written, against transformers' from the source, both in float32."""

    version: str
    tokens: tuple[int, int]
    logits: Difference
    h: tuple[Difference, ...]
    """Of every layer's output."""


def check_verifiable(source: Path) -> None:
    """InputError where there is nothing to compare with: no transformers, or a source that it does not open."""
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError:
        raise InputError(
            "comparing needs transformers and torch; pip install 'sysout_jax[parity]'"
        ) from None
    if not os.path.isfile(source / "config.json"):
        raise InputError(
            f"{source}: there is nothing to compare with; expected a Hugging Face directory, which transformers opens too"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=True)
        known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    except Exception:
        # the library raises dozens of types, all of which mean that it does not know it
        known = False
    if not known:
        raise InputError(
            f"{source}: there is nothing to compare with; transformers {transformers.__version__} has no class for it"
        )


def verify(lm: LanguageModel, source: Path) -> Verified:
    """Compute what was written (`lm`) and its source on (3, 64) random tokens, or as many as the model takes.

    Raises InputError when transformers does not open the source.
    """
    import transformers

    length = min(LENGTH, lm.config.context_length)
    rng = np.random.default_rng(0)
    tokens_BxT = rng.integers(0, lm.config.vocab_size, (BATCH, length), dtype=np.int32)
    theirs_logits, theirs_h = _transformers(source, tokens_BxT, lm.num_layers)
    logits_BxTxV, taps = capture(lm, tokens_BxT, ("h",))
    return Verified(
        transformers.__version__,
        tokens_BxT.shape,
        _difference(logits_BxTxV, theirs_logits),
        tuple(_difference(*pair) for pair in zip(taps["h"], theirs_h, strict=True)),
    )


def _difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    return Difference(float(np.abs(ours - theirs).max()), float(np.abs(theirs).max()))


def _transformers(source: Path, tokens_BxT: np.ndarray, layers: int) -> tuple[Any, list]:
    """logits (B, T, V), and h (B, T, D) of each layer."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            local_files_only=True,
        ).eval()
    except Exception as error:  # dozens of types; the conversion itself is done
        raise InputError(
            f"{source}: transformers does not open it ({printable(str(error))}); the conversion is done, and not compared"
        ) from None
    seen: list[np.ndarray] = []

    def keep(module, args, output) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).float().numpy())

    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for block in next(blocks for blocks in lists if len(blocks) == layers):
        block.register_forward_hook(keep)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens_BxT).long(), use_cache=False).logits
    return logits.float().numpy(), seen
