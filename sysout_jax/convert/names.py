"""Our parameter names ← the names other people's checkpoints use, one declarative table per family.

`{l}` stands for the layer. The tables are read in both directions: `python -m sysout_jax.convert --format hf` writes by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sysout_jax.config import AttentionName
from sysout_jax.convert.forms import LINEAR, PAIRED, PAIRED_LINEAR, PER_HEAD, SAME, Form


@dataclass(frozen=True)
class Stored:
    """Where a parameter lies in a foreign checkpoint and in which form."""

    name: str
    form: Form = SAME


def _linear(name: str) -> Stored:
    return Stored(name, LINEAR)


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
    ours: _linear(stored.name) if ours.endswith("kernel") else stored
    for ours, stored in GPT2.items()
} | {  # what the attention variants of the paper's code add
    "layer_{l}/attn/k_extra": Stored("transformer.h.{l}.attn.k_bias", PER_HEAD),
    "layer_{l}/attn/v_extra": Stored("transformer.h.{l}.attn.v_bias", PER_HEAD),
    "layer_{l}/attn/scale_proj/kernel": _linear("transformer.h.{l}.attn.context_scale.0.weight"),
    "layer_{l}/attn/scale_proj/bias": Stored("transformer.h.{l}.attn.context_scale.0.bias"),
}

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
    "layer_{l}/attn/v_proj/kernel": _linear("layers.{l}.attention.wv.weight"),
    "layer_{l}/attn/o_proj/kernel": _linear("layers.{l}.attention.wo.weight"),
    "layer_{l}/mlp_norm/scale": Stored("layers.{l}.ffn_norm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": _linear("layers.{l}.feed_forward.w1.weight"),
    "layer_{l}/mlp/down_proj/kernel": _linear("layers.{l}.feed_forward.w2.weight"),
    "layer_{l}/mlp/up_proj/kernel": _linear("layers.{l}.feed_forward.w3.weight"),
    "final_norm/scale": Stored("norm.weight"),
    "lm_head/kernel": _linear("output.weight"),
}

#: GGUF's names. Its converters turn q and k of LLaMA to Meta's neighbouring pairs and store every matrix (out, in).
GGUF_LLAMA: dict[str, Stored] = {
    "embed/embedding": Stored("token_embd.weight"),
    "layer_{l}/attn_norm/scale": Stored("blk.{l}.attn_norm.weight"),
    "layer_{l}/attn/q_proj/kernel": Stored("blk.{l}.attn_q.weight", PAIRED_LINEAR),
    "layer_{l}/attn/q_proj/bias": Stored("blk.{l}.attn_q.bias", PAIRED),
    "layer_{l}/attn/k_proj/kernel": Stored("blk.{l}.attn_k.weight", PAIRED_LINEAR),
    "layer_{l}/attn/k_proj/bias": Stored("blk.{l}.attn_k.bias", PAIRED),
    "layer_{l}/attn/v_proj/kernel": _linear("blk.{l}.attn_v.weight"),
    "layer_{l}/attn/v_proj/bias": Stored("blk.{l}.attn_v.bias"),
    "layer_{l}/attn/o_proj/kernel": _linear("blk.{l}.attn_output.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("blk.{l}.attn_output.bias"),
    "layer_{l}/mlp_norm/scale": Stored("blk.{l}.ffn_norm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": _linear("blk.{l}.ffn_gate.weight"),
    "layer_{l}/mlp/gate_proj/bias": Stored("blk.{l}.ffn_gate.bias"),
    "layer_{l}/mlp/up_proj/kernel": _linear("blk.{l}.ffn_up.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("blk.{l}.ffn_up.bias"),
    "layer_{l}/mlp/down_proj/kernel": _linear("blk.{l}.ffn_down.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("blk.{l}.ffn_down.bias"),
    "final_norm/scale": Stored("output_norm.weight"),
    "lm_head/kernel": _linear("output.weight"),
}
#: Qwen2's q and k are stored as they are.
_UNPAIRED = {PAIRED_LINEAR: LINEAR, PAIRED: SAME}
GGUF_QWEN2: dict[str, Stored] = {
    ours: Stored(stored.name, _UNPAIRED.get(stored.form, stored.form))
    for ours, stored in GGUF_LLAMA.items()
}
GGUF_GPT2: dict[str, Stored] = {
    "embed/embedding": Stored("token_embd.weight"),
    "positions/embedding": Stored("position_embd.weight"),
    "layer_{l}/attn_norm/scale": Stored("blk.{l}.attn_norm.weight"),
    "layer_{l}/attn_norm/bias": Stored("blk.{l}.attn_norm.bias"),
    "layer_{l}/attn/qkv_proj/kernel": _linear("blk.{l}.attn_qkv.weight"),
    "layer_{l}/attn/qkv_proj/bias": Stored("blk.{l}.attn_qkv.bias"),
    "layer_{l}/attn/o_proj/kernel": _linear("blk.{l}.attn_output.weight"),
    "layer_{l}/attn/o_proj/bias": Stored("blk.{l}.attn_output.bias"),
    "layer_{l}/mlp_norm/scale": Stored("blk.{l}.ffn_norm.weight"),
    "layer_{l}/mlp_norm/bias": Stored("blk.{l}.ffn_norm.bias"),
    "layer_{l}/mlp/up_proj/kernel": _linear("blk.{l}.ffn_up.weight"),
    "layer_{l}/mlp/up_proj/bias": Stored("blk.{l}.ffn_up.bias"),
    "layer_{l}/mlp/down_proj/kernel": _linear("blk.{l}.ffn_down.weight"),
    "layer_{l}/mlp/down_proj/bias": Stored("blk.{l}.ffn_down.bias"),
    "final_norm/scale": Stored("output_norm.weight"),
    "final_norm/bias": Stored("output_norm.bias"),
    "lm_head/kernel": _linear("output.weight"),
}

TABLES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "nanogpt": NANOGPT,
    "meta": META,
    "gguf-llama": GGUF_LLAMA,
    "gguf-qwen2": GGUF_QWEN2,
    "gguf-gpt2": GGUF_GPT2,
}

#: Prefixes under which a bare base model (without its language-model class) saves the same tensors.
BASE_PREFIX = {"llama": "model.", "gpt2": "transformer.", "nanogpt": "transformer."}

#: Buffers that older checkpoints carry and that hold no parameters: causal masks and rotary tables.
BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")


def stored_names(layout: str, ours: Iterable[str]) -> dict[str, Stored]:
    """The foreign tensor behind each of our parameter paths (`layer_0/mlp/up_proj/kernel`)."""
    table = TABLES[layout]
    found = {}
    for path in ours:
        layer = re.match(r"layer_(\d+)/", path)
        number = layer.group(1) if layer else ""
        generic = path.replace(f"layer_{number}/", "layer_{l}/", 1) if layer else path
        stored = table[generic]
        found[path] = Stored(stored.name.format(l=number), stored.form)
    return found
