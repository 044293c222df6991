"""Our parameter names ← the names other people's checkpoints use, one declarative table per format.

`{l}` stands for the layer. The tables are read in both directions: `python -m sysout_jax.convert --format hf` writes by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sysout_jax.config import AttentionName
from sysout_jax.families import ARCHITECTURES, LAYOUTS
from sysout_jax.families.forms import PAIRED_LINEAR, Stored, linear

#: The paper's model files, by the `model_type` that its train.py records in every checkpoint, and our name for each.
PAPER_MODELS: dict[str, AttentionName] = {
    "gpt2_default": "default",
    "gpt2_vbias": "fixed_bias",
    "gpt2_cabias": "context_bias",
    "gpt2_attn_bias": "attention_bias",
    "gpt2_ca_softmax": "context_scale",
    "gpt2_sigmoid": "sigmoid",
}

#: Meta's own names, in which llama2.c's files are described. Its rotary positions turn neighbouring pairs.
META: dict[str, Stored] = {
    "embed/embedding": Stored("tok_embeddings.weight"),
    "layer_{l}/attn_norm/scale": Stored("layers.{l}.attention_norm.weight"),
    "layer_{l}/attn/q_proj/kernel": Stored("layers.{l}.attention.wq.weight", PAIRED_LINEAR),
    "layer_{l}/attn/k_proj/kernel": Stored("layers.{l}.attention.wk.weight", PAIRED_LINEAR),
    "layer_{l}/attn/v_proj/kernel": linear("layers.{l}.attention.wv.weight"),
    "layer_{l}/attn/o_proj/kernel": linear("layers.{l}.attention.wo.weight"),
    "layer_{l}/mlp_norm/scale": Stored("layers.{l}.ffn_norm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": linear("layers.{l}.feed_forward.w1.weight"),
    "layer_{l}/mlp/down_proj/kernel": linear("layers.{l}.feed_forward.w2.weight"),
    "layer_{l}/mlp/up_proj/kernel": linear("layers.{l}.feed_forward.w3.weight"),
    "final_norm/scale": Stored("norm.weight"),
    "lm_head/kernel": linear("output.weight"),
}

#: Name of a layout → its table: those of the families, and those of other formats.
TABLES: dict[str, Mapping[str, Stored]] = {
    **{name: layout.names for name, layout in LAYOUTS.items()},
    "meta": META,
    **{
        f"gguf-{name}-{family}": gguf.names
        for name, families in ARCHITECTURES.items()
        for family, gguf in families.items()
    },
}

#: Buffers that older checkpoints carry and that hold no parameters: causal masks and rotary tables; layers that predict further tokens (MiMo).
BUFFERS = re.compile(
    r"(\.attn(ention)?\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$|^model\.mtp_layers\."
)


def stored_names(layout: str, ours: Iterable[str]) -> dict[str, Stored]:
    """The foreign tensor behind each of our parameter paths (`layer_0/mlp/up_proj/kernel`)."""
    table = TABLES[layout]
    stored = {}
    for path in ours:
        layer = re.match(r"layer_(\d+)/", path)
        number = layer.group(1) if layer else ""
        generic = path.replace(f"layer_{number}/", "layer_{l}/", 1) if layer else path
        stored[path] = _of_layer(table[generic], number)
    return stored


def _of_layer(stored: Stored, number: str) -> Stored:
    return stored.renamed(lambda name: name.replace("{l}", number))
