"""Our parameter names ← those of other people's checkpoints, one declarative table per family or format.

`{l}` stands for the layer. The tables are read in both directions: `python -m sysout_jax.convert --format hf` writes by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sysout_jax.families.forms import Stored

#: Buffers that older checkpoints carry and that hold no parameters: causal masks and rotary tables; layers that predict further tokens (MiMo).
BUFFERS = re.compile(
    r"(\.attn(ention)?\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$|^model\.mtp_layers\."
)


def stored_names(table: Mapping[str, Stored], ours: Iterable[str]) -> dict[str, Stored]:
    """The foreign tensor behind each of our parameter paths (`layer_0/mlp/up_proj/kernel`)."""
    stored = {}
    for path in ours:
        layer = re.match(r"layer_(\d+)/", path)
        number = layer.group(1) if layer else ""
        generic = path.replace(f"layer_{number}/", "layer_{l}/", 1) if layer else path
        stored[path] = _of_layer(table[generic], number)
    return stored


def _of_layer(stored: Stored, number: str) -> Stored:
    return stored.renamed(lambda name: name.replace("{l}", number))
