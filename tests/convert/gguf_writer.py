"""GGUF files as the public converters write them, from Hugging Face directories: an independent reading of the format for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "llama": {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    "gpt2": {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
    },
}
TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}


def paired(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from halves to neighbouring pairs, as convert_hf_to_gguf's permute does."""
    shape = w.shape
    return w.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def hf_tensors(directory: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def to_gguf(name: str, w: np.ndarray, config: dict, permute: bool = True) -> tuple[str, np.ndarray]:
    """GGUF's name and form of one tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}", w
    prefix = "model.layers." if config["model_type"] != "gpt2" else "transformer.h."
    layer, _, part = stem.removeprefix(prefix).partition(".")
    arch = "gpt2" if config["model_type"] == "gpt2" else "llama"
    if arch == "gpt2" and kind == "weight" and ("c_" in part):
        w = w.T  # Conv1D
    heads = config.get("num_attention_heads")
    if permute and part == "self_attn.q_proj":
        w = paired(w, heads)
    if permute and part == "self_attn.k_proj":
        w = paired(w, config.get("num_key_value_heads") or heads)
    return f"blk.{layer}.{NAMES[arch][part]}.{kind}", w


def write_gguf(
    hf: Path,
    path: Path,
    *,
    quantise: gguf.GGMLQuantizationType | None = None,
    permute: bool = True,
    extra: dict[str, np.ndarray] | None = None,
    tokenizer: dict | None = None,
) -> None:
    """A whole model file; matrices whose rows are whole blocks are stored as `quantise`, everything else as float32."""
    config = json.loads((hf / "config.json").read_text())
    arch = "gpt2" if config["model_type"] == "gpt2" else "llama"
    writer = gguf.GGUFWriter(path, "qwen2" if config["model_type"] == "qwen2" else arch)
    permute = permute and config["model_type"] != "qwen2"  # stored as it is
    if arch == "llama":
        heads = config["num_attention_heads"]
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_head_count(heads)
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        rope = config.get("rope_parameters") or {}
        writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    else:
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    for name, value in (tokenizer or {}).items():
        getattr(writer, name)(value)
    tensors = [to_gguf(name, w, config, permute) for name, w in hf_tensors(hf).items()]
    for name, w in [*tensors, *(extra or {}).items()]:
        w = np.ascontiguousarray(w, np.float32)
        block = gguf.GGML_QUANT_SIZES[quantise][0] if quantise is not None else 0
        if quantise is None or w.ndim < 2 or w.shape[-1] % block:
            writer.add_tensor(name, w)
        else:
            writer.add_tensor(name, gguf.quants.quantize(w, quantise), raw_dtype=quantise)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
