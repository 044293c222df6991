"""An absorbed prefix as files for transformers: a safetensors key-value cache, and the lines that use it with the original model."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from sysout_jax.compress.absorption import PrefixKeys
from sysout_jax.config import ModelConfig
from sysout_jax.families import FAMILIES
from sysout_jax.families.forms import PAIRED, PAIRED_LINEAR

CACHE, SCRIPT = "prefix.safetensors", "use_prefix.py"

_LINES = '''"""The prefix {shown} of {model} as a key-value cache: transformers reads a text as if it stood before it."""

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

MODEL = "..."  # the original model
stored = load_file("{cache}")
model = AutoModelForCausalLM.from_pretrained(MODEL)
tokenizer = AutoTokenizer.from_pretrained(MODEL)


def prefix_cache(batch=1):
    """A new one for every text: the model writes into it."""
    cache = DynamicCache()
    for layer in range({layers}):
        parts = (stored[f"{{name}}.{{layer}}"].to(model.dtype) for name in ("key", "value"))
        cache.update(*(part.expand(batch, -1, -1, -1) for part in parts), layer)
    return cache


inputs = tokenizer("A text.", return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    logits = model(inputs.input_ids, past_key_values=prefix_cache()).logits
'''


def cache_files(config: ModelConfig, held: PrefixKeys, model: str, shown: str) -> dict[str, bytes]:
    """Both files by name. Arrays `key.<layer>` and `value.<layer>` are (1, K, m, Dh), keys turned at the positions 0 … m−1."""
    arrays = {}
    for l, (keys, values) in enumerate(zip(held.keys, held.values, strict=True)):
        for name, x_MxKxDh in (("key", _as_stored(config, keys)), ("value", values)):
            arrays[f"{name}.{l}"] = np.ascontiguousarray(x_MxKxDh.transpose(1, 0, 2)[None])
    prefix = " ".join(map(str, held.prefix))
    lines = _LINES.format(
        shown=shown.replace("\\", "\\\\").replace('"', '\\"'),
        model=model.replace("\\", "\\\\").replace('"', '\\"'),
        cache=CACHE,
        layers=config.num_layers,
    )
    return {CACHE: save(arrays, {"format": "pt", "prefix": prefix}), SCRIPT: lines.encode()}


def _as_stored(config: ModelConfig, keys_MxKxDh: np.ndarray) -> np.ndarray:
    """Keys with the order of dims that the family's own layout has: some turn neighbouring pairs, where we turn halves."""
    layout = next(iter(FAMILIES[config.family].layouts.values()))
    stored = layout.names.get("layer_{l}/attn/k_proj/kernel")
    if stored is None or stored.form is not PAIRED_LINEAR:
        return keys_MxKxDh
    M, K, Dh = keys_MxKxDh.shape
    theirs = np.empty_like(keys_MxKxDh).reshape(M, -1)
    theirs[:, PAIRED.ours(np.arange(K * Dh), config)] = keys_MxKxDh.reshape(M, -1)
    return theirs.reshape(M, K, Dh)
