"""GGUF files as the public converters write them, from Hugging Face directories: an independent reading of the format for the tests.

Names are those of the `gguf` package's own map from transformers' names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Tensors = dict[str, np.ndarray]
_ARCHITECTURES = {
    "gemma3_text": "gemma3", "mistral": "llama", "mixtral": "llama", "phi": "phi2", "gpt_neox": "gptneox", "olmo3": "olmo2",
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "cohere": "command-r",
}  # fmt: skip
#: Whose converters turn q and k.
_PAIRED = ("llama", "olmo", "internlm2", "minicpm", "baichuan")


def architecture(config: dict) -> str:
    return _ARCHITECTURES.get(config["model_type"], config["model_type"])


def paired(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from halves to neighbouring pairs, as convert_hf_to_gguf's permute does."""
    shape = w.shape
    return w.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def hf_tensors(directory: Path) -> Tensors:
    tensors: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _one(config: dict, *names: str, default: Any = None) -> Any:
    """The first of these fields that is there."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _heads(config: dict) -> tuple[int, int]:
    """H and K."""
    heads = _one(config, "num_attention_heads", "n_head", "n_heads")
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        return heads, 1 if config["multi_query"] else heads
    return heads, _one(config, "num_key_value_heads", "num_kv_heads", default=heads)


def _changed(name: str, w: np.ndarray, config: dict) -> np.ndarray:
    """What the converter of the architecture does to a tensor."""
    arch, (heads, kv_heads) = architecture(config), _heads(config)
    if arch in _PAIRED and (".q_proj." in name or ".wq." in name):
        return paired(w, heads)
    if arch in _PAIRED and (".k_proj." in name or ".wk." in name):
        return paired(w, kv_heads)
    if arch == "gpt2" and ".c_" in name and name.endswith("weight"):
        return w.T  # Conv1D
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return w + np.float32(1)
    if arch == "gptneox" and "query_key_value" in name:
        return w.reshape(heads, 3, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
    if arch == "falcon" and "query_key_value" in name:
        groups = w.reshape(kv_heads, heads // kv_heads + 2, -1, *w.shape[1:])
        parts = groups[:, :-2], groups[:, [-2]], groups[:, [-1]]
        return np.concatenate([part.reshape(-1, *w.shape[1:]) for part in parts])
    return w


def to_gguf(name: str, w: np.ndarray, config: dict, permute: bool = True) -> tuple[str, np.ndarray]:
    """GGUF's name and form of one tensor."""
    arch = architecture(config)
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == arch)
    theirs = gguf.get_tensor_name_map(kind, 8).get_name(name, (".weight", ".bias"))
    assert theirs, name
    return theirs, _changed(name, w, config) if permute else w


def add_keys(writer: gguf.GGUFWriter, config: dict) -> None:
    """What a file says of a Hugging Face config."""
    arch, (heads, kv_heads) = architecture(config), _heads(config)
    width = _one(config, "hidden_size", "n_embd", "d_model")
    inner = _one(config, "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * width)
    writer.add_context_length(_one(config, "max_position_embeddings", "n_positions", "max_seq_len"))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(_one(config, "num_hidden_layers", "n_layer", "n_layers"))
    writer.add_head_count(heads)
    if arch == "olmo":
        writer.add_layer_norm_eps(1e-5)
    elif "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon")
        writer.add_layer_norm_eps(_one(config, *names))
    if arch == "mpt":
        attention = config["attn_config"]
        writer.add_max_alibi_bias(attention["alibi_bias_max"])
        if attention["clip_qkv"] is not None:
            writer.add_clamp_kqv(attention["clip_qkv"])
    if arch in ("gpt2", "mpt"):
        return
    writer.add_head_count_kv(kv_heads)
    head_dim = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if arch not in ("falcon", "phi2", "gptneox", "stablelm", "gemma", "gemma2"):
        writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch in ("qwen2moe", "qwen3moe"):
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if arch == "qwen2moe":
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if arch == "gpt-oss":
        writer.add_expert_feed_forward_length(config["intermediate_size"])
        writer.add_sliding_window(config["sliding_window"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config["model_type"] == "olmo3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([k == "sliding_attention" for k in config["layer_types"]])
    if rope.get("rope_type") == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = config["max_position_embeddings"] / original
        grown = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        writer.add_rope_scaling_attn_factors(grown)
        for kind in ("long", "short"):
            factors = np.array(rope[f"{kind}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{kind}.weight", factors)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if arch in ("llama", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gpt-oss"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("llama", "phi2", "phi3", "gptneox", "stablelm", "baichuan"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config["use_parallel_residual"])
    if arch == "baichuan":
        writer.add_tensor_data_layout("Meta AI original pth")
    if arch == "minicpm":
        writer.add_embedding_scale(float(config["scale_emb"]))
        writer.add_residual_scale(config["scale_depth"] / config["num_hidden_layers"] ** 0.5)
        writer.add_logit_scale(width / config["dim_model_base"])
    if arch == "command-r":
        writer.add_logit_scale(config["logit_scale"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if arch == "olmo" and config["clip_qkv"] is not None:
        writer.add_clamp_kqv(config["clip_qkv"])
    if arch == "falcon":
        writer.add_tensor_data_layout("jploski")
    if arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        writer.add_sliding_window(config["sliding_window"] or 0)
    if arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        local = config["rope_parameters"]["sliding_attention"]["rope_theta"]
        if local != 10_000:
            writer.add_rope_freq_base_swa(local)
        if config["final_logit_softcapping"] is not None:
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "gemma2":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _stacked(tensors: Tensors) -> Tensors:
    """The experts of a layer in one tensor, as the converter merges them."""
    experts: dict[str, dict[int, np.ndarray]] = {}
    rest = {}
    for name, w in tensors.items():
        if found := re.match(r"(.*\.experts)\.(\d+)\.(.*)", name):
            experts.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = w
        else:
            rest[name] = w
    return rest | {n: np.stack([ws[e] for e in sorted(ws)]) for n, ws in experts.items()}


def _of_gpt_oss(tensors: Tensors) -> Tensors:
    """The experts of gpt-oss with gate and up apart and every matrix (out, in), and the names that the package's map knows."""
    found = {}
    for name, w in tensors.items():
        before, experts, part = name.partition(".mlp.experts.")
        if not experts:
            found[name + ".weight" if name.endswith(".sinks") else name] = w
            continue
        part, kind = part.removesuffix("_bias"), "bias" if part.endswith("_bias") else "weight"
        rows = w.swapaxes(1, 2) if kind == "weight" else w
        sides = {"down_proj": rows}
        if part == "gate_up_proj":
            sides = {"gate_proj": rows[:, 0::2], "up_proj": rows[:, 1::2]}
        found |= {f"{before}{experts}{side}.{kind}": each for side, each in sides.items()}
    return found


def _apart(tensors: Tensors, config: dict) -> Tensors:
    """q, k and v of InternLM 2 and Baichuan each in a tensor of its own, under names that the package's map knows."""
    heads, kv_heads = _heads(config)
    found = {}
    for name, w in tensors.items():
        if name.endswith(".wqkv.weight"):
            groups = w.reshape(kv_heads, heads // kv_heads + 2, -1, w.shape[1])
            parts = groups[:, :-2], groups[:, -2], groups[:, -1]
            names = [name.replace("wqkv", f"w{part}") for part in "qkv"]
            found |= {n: x.reshape(-1, w.shape[1]) for n, x in zip(names, parts, strict=True)}
        elif name.endswith(".W_pack.weight"):
            names = [name.replace("W_pack", f"{part}_proj") for part in "qkv"]
            found |= dict(zip(names, np.split(w, 3), strict=True))
        else:
            found[name] = w
    return found


def write_gguf(
    hf: Path,
    path: Path,
    *,
    quantise: gguf.GGMLQuantizationType | None = None,
    permute: bool = True,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    keys: dict[str, Any] | None = None,
    blocks: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.MXFP4,
) -> None:
    """A whole model file; matrices whose rows are whole blocks are stored as `quantise`, everything else as float32.

    What `change` makes bytes are of the type `blocks`. `keys` are methods of the writer and what they are given; without `permute` nothing is done to tensors but naming them.
    """
    config = json.loads((hf / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture(config))
    add_keys(writer, config)
    for name, value in (keys or {}).items():
        getattr(writer, name)(value)
    tensors = hf_tensors(hf)
    if architecture(config) in ("gemma", "gemma2"):
        tensors.pop("lm_head.weight", None)
    if architecture(config) == "gpt-oss":
        tensors = _of_gpt_oss(tensors)
    tensors = _apart(tensors, config)
    stored = dict(to_gguf(name, w, config, permute) for name, w in _stacked(tensors).items())
    for name, w in change(stored).items():
        if w.dtype == np.uint8:
            writer.add_tensor(name, w, raw_dtype=blocks)
            continue
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
