"""Small models of other people's making, and what they compute: shared by the fixture writer and the live comparison.

torch and transformers are imported where they are used, so that the case table can be read without them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures" / "parity"
REFERENCE = "reference.npz"
BATCH, LENGTH, VOCAB, LAYERS = 2, 24, 32, 2

#: Standard deviations. transformers' 0.02 leaves attention uniform and residuals small, and mistakes drown in both.
WEIGHT_STD, NORM_STD, BIAS_STD = 0.3, 0.3, 0.3


@dataclass(frozen=True)
class Case:
    """One architecture: a transformers config class and its settings, or the nanoGPT convention."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    shard_bytes: int | None = None


_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "tie_word_embeddings": True,
}
_LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}
# with 8 dims a head there are four frequencies: one kept, one blended, two divided
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}

CASES: dict[str, Case] = {
    "llama-mha": Case("llama", _LLAMA),
    "llama-gqa-sharded": Case("llama", _LLAMA | {"num_key_value_heads": 2}, shard_bytes=8_000),
    "llama-mqa": Case("llama", _LLAMA | {"num_key_value_heads": 1}),
    "llama-tied": Case("llama", _LLAMA | {"tie_word_embeddings": True}),
    "llama-head-dim": Case("llama", _LLAMA | {"head_dim": 10, "num_key_value_heads": 2}),
    "llama-biases": Case("llama", _LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": Case("llama", _LLAMA | {"head_dim": 8, "rope_parameters": _LINEAR}),
    "llama-llama3-rope": Case(
        "llama", _LLAMA | {"head_dim": 8, "rope_parameters": _LLAMA3, "num_key_value_heads": 2}
    ),
    "mistral": Case("mistral", _LLAMA | {"num_key_value_heads": 2, "sliding_window": 32}),
    "mistral-window": Case("mistral", _LLAMA | {"num_key_value_heads": 2, "sliding_window": 5}),
    "qwen2": Case(
        "qwen2",
        _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True, "sliding_window": 4},
    ),
    "gpt2": Case("gpt2", _GPT2),
    "gpt2-exact-gelu-untied": Case(
        "gpt2",
        _GPT2 | {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False},
    ),
    "nanogpt": Case(
        "nanogpt",
        {
            "vocab_size": VOCAB,
            "n_embd": 16,
            "n_layer": LAYERS,
            "n_head": 4,
            "block_size": 64,
            "bias": False,
        },
    ),
}


def random_tokens(seed: int) -> np.ndarray:
    """(BATCH, LENGTH) int32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, VOCAB, (BATCH, LENGTH), dtype=np.int32)


def write_case(name: str, seed: int, directory: Path) -> dict[str, np.ndarray]:
    """Write a random model of the case to `directory` and return what it computes for random tokens.

    The result has tokens (B, T), logits (B, T, V), h (L, B, T, D), x_down (L, B, T, F) and attn_map (L, B, H, T, T).
    """
    import torch

    case, tokens = CASES[name], random_tokens(seed)
    torch.manual_seed(seed)
    if case.kind == "nanogpt":
        weights = _nanogpt_weights(case.settings)
        _save_nanogpt(weights, case.settings, directory)
        with torch.no_grad():
            found = _nanogpt_forward(weights, case.settings, torch.from_numpy(tokens).long())
    else:
        model = _transformers_model(case)
        model.save_pretrained(directory, max_shard_size=case.shard_bytes or "1GB")
        (directory / "generation_config.json").unlink(missing_ok=True)
        found = _transformers_forward(model, torch.from_numpy(tokens).long())
    return {"tokens": tokens} | {key: value.numpy() for key, value in found.items()}


def _transformers_model(case: Case):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(case.kind, **case.settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name or ".ln_" in name
            if name.endswith("bias"):
                parameter.normal_(0.0, BIAS_STD)
            else:
                parameter.normal_(float(is_norm), NORM_STD if is_norm else WEIGHT_STD)
    return model.float().eval()


def _transformers_forward(model, tokens) -> dict:
    """Logits and intermediates, read with hooks: the library's own last hidden state comes after the final norm."""
    import torch

    seen: dict[str, list] = {"h": [], "x_down": []}

    def keep_output(module, args, output):
        seen["h"].append(output[0] if isinstance(output, tuple) else output)

    def keep_input(module, args):
        seen["x_down"].append(args[0])

    is_llama = hasattr(model, "model")
    for block in model.model.layers if is_llama else model.transformer.h:
        block.register_forward_hook(keep_output)
        down = block.mlp.down_proj if is_llama else block.mlp.c_proj
        down.register_forward_pre_hook(keep_input)
    with torch.no_grad():
        output = model(tokens, output_attentions=True, use_cache=False)
    return {
        "logits": output.logits,
        "attn_map": torch.stack(output.attentions),
        **{name: torch.stack(values) for name, values in seen.items()},
    }


def _nanogpt_weights(settings: dict) -> dict:
    """Weights named and oriented as nanoGPT stores them: torch.nn.Linear, (out, in); the head is the embedding again."""
    import torch

    D, V, T = settings["n_embd"], settings["vocab_size"], settings["block_size"]

    def matrix(*shape: int):
        return torch.randn(shape) * WEIGHT_STD

    def scale():
        return 1 + torch.randn(D) * NORM_STD

    weights = {"transformer.wte.weight": matrix(V, D), "transformer.wpe.weight": matrix(T, D)}
    for l in range(settings["n_layer"]):
        prefix = f"transformer.h.{l}."
        weights |= {
            prefix + "ln_1.weight": scale(),
            prefix + "attn.c_attn.weight": matrix(3 * D, D),
            prefix + "attn.c_proj.weight": matrix(D, D),
            prefix + "ln_2.weight": scale(),
            prefix + "mlp.c_fc.weight": matrix(4 * D, D),
            prefix + "mlp.c_proj.weight": matrix(D, 4 * D),
        }
    weights["transformer.ln_f.weight"] = scale()
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    return weights


def _save_nanogpt(weights: dict, settings: dict, directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _nanogpt_forward(weights: dict, settings: dict, tokens) -> dict:
    """The model from its equations: pre-norm blocks, causal attention, exact GELU, no biases."""
    import torch
    from torch.nn import functional as F

    H, D = settings["n_head"], settings["n_embd"]
    B, T = tokens.shape
    seen: dict[str, list] = {"h": [], "x_down": [], "attn_map": []}

    def norm(x, name):
        return F.layer_norm(x, (D,), weights[name + ".weight"], eps=1e-5)

    def heads(x):
        return x.view(B, T, H, D // H).transpose(1, 2)

    x = F.embedding(tokens, weights["transformer.wte.weight"])
    x = x + weights["transformer.wpe.weight"][:T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for l in range(settings["n_layer"]):
        prefix = f"transformer.h.{l}."
        qkv = F.linear(norm(x, prefix + "ln_1"), weights[prefix + "attn.c_attn.weight"])
        q, k, v = (heads(part) for part in qkv.split(D, dim=-1))
        scores = (q @ k.mT / math.sqrt(D // H)).masked_fill(future, -math.inf)
        attn = scores.softmax(-1)
        mixed = (attn @ v).transpose(1, 2).reshape(B, T, D)
        x = x + F.linear(mixed, weights[prefix + "attn.c_proj.weight"])
        x_down = F.gelu(F.linear(norm(x, prefix + "ln_2"), weights[prefix + "mlp.c_fc.weight"]))
        x = x + F.linear(x_down, weights[prefix + "mlp.c_proj.weight"])
        for name, value in (("h", x), ("x_down", x_down), ("attn_map", attn)):
            seen[name].append(value)
    logits = F.linear(norm(x, "transformer.ln_f"), weights["lm_head.weight"])
    return {"logits": logits, **{name: torch.stack(values) for name, values in seen.items()}}
