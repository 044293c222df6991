"""Small random models of the families that transformers has no class for, as their Hugging Face directories hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.weights import InMemory
from tests.families.cases import NEW
from tests.random_models import random_params


def plain_model(settings: dict[str, Any]) -> so.LanguageModel:
    """A LLaMA of these sizes."""
    sizes = {name: settings[name] for name in NEW if name in settings}
    config = read_config({"model_type": "llama", **sizes}, "plain").config
    return so.LanguageModel(config, InMemory(random_params(config, 0, std=0.3, scale=1.0)))


def llama_tensors(
    plain: so.LanguageModel, parts: tuple[str, ...] = ("attn", "mlp")
) -> dict[str, np.ndarray]:
    """Its parameters under the names of transformers' LLaMA."""
    tensors = {}
    for end, name in (("embed", "model.embed_tokens"), ("final_norm", "model.norm")):
        tensors[f"{name}.weight"] = next(iter(plain.params[end].values()))
    tensors["lm_head.weight"] = plain.params["lm_head"]["kernel"].T
    names = {part: {"attn": "self_attn", "mlp": "mlp"}[part] for part in parts}
    for l in range(plain.num_layers):
        layer, name = plain.params[f"layer_{l}"], f"model.layers.{l}"
        tensors[f"{name}.input_layernorm.weight"] = layer["attn_norm"]["scale"]
        tensors[f"{name}.post_attention_layernorm.weight"] = layer["mlp_norm"]["scale"]
        for group, theirs in names.items():
            for matrix, held in layer[group].items():
                tensors[f"{name}.{theirs}.{matrix}.weight"] = held["kernel"].T
                if "bias" in held:
                    tensors[f"{name}.{theirs}.{matrix}.bias"] = held["bias"]
    return {name: np.asarray(x) for name, x in tensors.items()}


def baichuan_tensors(plain: so.LanguageModel) -> dict[str, np.ndarray]:
    """With q, k and v in one matrix."""
    tensors = llama_tensors(plain)
    for l in range(plain.num_layers):
        attn = f"model.layers.{l}.self_attn"
        rows = [tensors.pop(f"{attn}.{part}_proj.weight") for part in "qkv"]
        tensors[f"{attn}.W_pack.weight"] = np.concatenate(rows)
    return tensors


def internlm2_tensors(plain: so.LanguageModel) -> dict[str, np.ndarray]:
    """With q, k and v in one matrix, by key heads."""
    config, params = plain.config, plain.params
    tensors = {
        "model.tok_embeddings.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
        "output.weight": params["lm_head"]["kernel"].T,
    }
    H, K, Dh = config.num_heads, config.num_kv_heads, config.head_dim
    for l in range(config.num_layers):
        layer, name = params[f"layer_{l}"], f"model.layers.{l}"
        q, k, v = (np.asarray(layer["attn"][f"{p}_proj"]["kernel"]).T for p in "qkv")
        rows = []
        for g in range(K):  # the query heads of a key head, the key, the value
            rows += [q[g * H // K * Dh : (g + 1) * H // K * Dh]]
            rows += [k[g * Dh : (g + 1) * Dh], v[g * Dh : (g + 1) * Dh]]
        tensors |= {
            f"{name}.attention.wqkv.weight": np.concatenate(rows),
            f"{name}.attention.wo.weight": layer["attn"]["o_proj"]["kernel"].T,
            f"{name}.attention_norm.weight": layer["attn_norm"]["scale"],
            f"{name}.ffn_norm.weight": layer["mlp_norm"]["scale"],
            f"{name}.feed_forward.w1.weight": layer["mlp"]["gate_proj"]["kernel"].T,
            f"{name}.feed_forward.w2.weight": layer["mlp"]["down_proj"]["kernel"].T,
            f"{name}.feed_forward.w3.weight": layer["mlp"]["up_proj"]["kernel"].T,
        }
    return tensors


TENSORS = {
    "internlm2": internlm2_tensors,
    "minicpm": llama_tensors,
    "baichuan": baichuan_tensors,
}


def write(directory: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A Hugging Face directory."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(fields))
    contiguous = {name: np.ascontiguousarray(np.asarray(x)) for name, x in tensors.items()}
    save_file(contiguous, directory / "model.safetensors")
    return directory
