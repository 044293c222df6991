"""Our parameter names ← the names other people's checkpoints use, one declarative table per family.

`{l}` stands for the layer. `transposed` marks matrices that are stored (out, in), as torch.nn.Linear does; ours are (in, out).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sysout_jax.config import ModelConfig


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a foreign checkpoint and whether it lies there transposed."""

    name: str
    transposed: bool = False


def _linear(name: str) -> Stored:
    return Stored(name, transposed=True)


LLAMA: dict[str, Stored] = {
    "embed/embedding": Stored("model.embed_tokens.weight"),
    "layer_{l}/attn_norm/scale": Stored("model.layers.{l}.input_layernorm.weight"),
    "layer_{l}/attn/q_proj/kernel": _linear("model.layers.{l}.self_attn.q_proj.weight"),
    "layer_{l}/attn/q_proj/bias": Stored("model.layers.{l}.self_attn.q_proj.bias"),
    "layer_{l}/attn/k_proj/kernel": _linear("model.layers.{l}.self_attn.k_proj.weight"),
    "layer_{l}/attn/k_proj/bias": Stored("model.layers.{l}.self_attn.k_proj.bias"),
    "layer_{l}/attn/v_proj/kernel": _linear("model.layers.{l}.self_attn.v_proj.weight"),
    "layer_{l}/attn/v_proj/bias": Stored("model.layers.{l}.self_attn.v_proj.bias"),
    "layer_{l}/attn/o_proj/kernel": _linear("model.layers.{l}.self_attn.o_proj.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("model.layers.{l}.self_attn.o_proj.bias"),
    "layer_{l}/mlp_norm/scale": Stored("model.layers.{l}.post_attention_layernorm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": _linear("model.layers.{l}.mlp.gate_proj.weight"),
    "layer_{l}/mlp/gate_proj/bias": Stored("model.layers.{l}.mlp.gate_proj.bias"),
    "layer_{l}/mlp/up_proj/kernel": _linear("model.layers.{l}.mlp.up_proj.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("model.layers.{l}.mlp.up_proj.bias"),
    "layer_{l}/mlp/down_proj/kernel": _linear("model.layers.{l}.mlp.down_proj.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("model.layers.{l}.mlp.down_proj.bias"),
    "final_norm/scale": Stored("model.norm.weight"),
    "lm_head/kernel": _linear("lm_head.weight"),
}

GPT2: dict[str, Stored] = {  # HF's Conv1D is stored (in, out)
    "embed/embedding": Stored("transformer.wte.weight"),
    "positions/embedding": Stored("transformer.wpe.weight"),
    "layer_{l}/attn_norm/scale": Stored("transformer.h.{l}.ln_1.weight"),
    "layer_{l}/attn_norm/bias": Stored("transformer.h.{l}.ln_1.bias"),
    "layer_{l}/attn/qkv_proj/kernel": Stored("transformer.h.{l}.attn.c_attn.weight"),
    "layer_{l}/attn/qkv_proj/bias": Stored("transformer.h.{l}.attn.c_attn.bias"),
    "layer_{l}/attn/o_proj/kernel": Stored("transformer.h.{l}.attn.c_proj.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("transformer.h.{l}.attn.c_proj.bias"),
    "layer_{l}/mlp_norm/scale": Stored("transformer.h.{l}.ln_2.weight"),
    "layer_{l}/mlp_norm/bias": Stored("transformer.h.{l}.ln_2.bias"),
    "layer_{l}/mlp/up_proj/kernel": Stored("transformer.h.{l}.mlp.c_fc.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("transformer.h.{l}.mlp.c_fc.bias"),
    "layer_{l}/mlp/down_proj/kernel": Stored("transformer.h.{l}.mlp.c_proj.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("transformer.h.{l}.mlp.c_proj.bias"),
    "final_norm/scale": Stored("transformer.ln_f.weight"),
    "final_norm/bias": Stored("transformer.ln_f.bias"),
    "lm_head/kernel": _linear("lm_head.weight"),
}

NANOGPT: dict[str, Stored] = {  # the same names, but torch.nn.Linear, stored (out, in)
    ours: Stored(stored.name, transposed=ours.endswith("kernel")) for ours, stored in GPT2.items()
}

TABLES = {"llama": LLAMA, "gpt2": GPT2, "nanogpt": NANOGPT}

#: Prefixes under which a bare base model (without its language-model class) saves the same tensors.
BASE_PREFIX = {"llama": "model.", "gpt2": "transformer.", "nanogpt": "transformer."}

#: Buffers that older checkpoints carry and that hold no parameters: causal masks and rotary tables.
BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")


def stored_names(layout: str, config: ModelConfig, ours: list[str]) -> dict[str, Stored]:
    """The foreign tensor behind each of our parameter paths (`layer_0/mlp/up_proj/kernel`)."""
    table = TABLES[layout]
    found = {}
    for path in ours:
        layer = re.match(r"layer_(\d+)/", path)
        number = layer.group(1) if layer else ""
        generic = path.replace(f"layer_{number}/", "layer_{l}/", 1) if layer else path
        stored = table[generic]
        found[path] = Stored(stored.name.format(l=number), stored.transposed)
    return found
