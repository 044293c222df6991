"""Small random models of every family, as transformers builds and computes them.

torch and transformers are imported where they are used, so that the table can be read without them.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VOCAB, LENGTH, BATCH, CONTEXT = 32, 20, 2, 64
WINDOW = 6


class Case(NamedTuple):
    """A `model_type` and its settings."""

    kind: str
    settings: dict[str, Any]


NEW = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
_ODD = {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1}  # heads of 10
_TIED = {"tie_word_embeddings": True}
_MPT = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}
_OPT = {**NEW, "ffn_dim": 24, "word_embed_proj_dim": 16}
del _OPT["intermediate_size"], _OPT["num_key_value_heads"]
_NEOX = {k: v for k, v in NEW.items() if k != "num_key_value_heads"}
_FALCON = {**_OPT, "ffn_hidden_size": 24}
del _FALCON["ffn_dim"], _FALCON["word_embed_proj_dim"]
_SECOND = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": WINDOW}
_HEAD_DIM = {"head_dim": 10}
_LONG = {"type": "longrope", "long_factor": [1.5, 3.0], "short_factor": [1.0, 1.25]}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_GPTJ = {
    "vocab_size": VOCAB,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "rotary_dim": 4,
}
_QWEN_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

CASES = {
    "llama": Case("llama", NEW),
    "mistral-window": Case("mistral", NEW | {"sliding_window": WINDOW, "head_dim": 4}),
    "mistral-mqa": Case("mistral", NEW | _ODD | {"sliding_window": 1, "head_dim": 10}),
    "ministral3": Case(
        "ministral3",
        NEW | {"head_dim": 8, "rope_parameters": _YARN | {"original_max_position_embeddings": 8, "rope_theta": 1e4, "llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "gpt2": Case("gpt2", {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    "qwen2": Case("qwen2", NEW),
    "qwen2-window": Case("qwen2", NEW | _TIED | _HEADS | _SECOND | {"use_sliding_window": True}),
    "qwen2-later-layers": Case(
        "qwen2", NEW | _ODD | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    ),
    "qwen3": Case("qwen3", NEW | _HEAD_DIM),
    "qwen3-biases": Case("qwen3", NEW | _TIED | _ODD | {"attention_bias": True, "head_dim": 8}),
    "phi": Case("phi", NEW | _HEADS),
    "phi-gqa": Case("phi", NEW | _ODD | {"partial_rotary_factor": 0.4, "hidden_act": "gelu"}),
    "opt": Case("opt", _OPT | _TIED),
    "opt-untied": Case("opt", _OPT | {"enable_bias": False, "activation_function": "gelu"}),
    "gpt_neox": Case("gpt_neox", _NEOX | {"rotary_pct": 0.5}),
    "gpt_neox-sequential": Case(
        "gpt_neox", _NEOX | _TIED | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0}
    ),
    "mpt": Case("mpt", _MPT),
    "mpt-odd-heads": Case(
        "mpt", _MPT | {"d_model": 30, "n_heads": 3, "attn_config": {"clip_qkv": 0.9, "softmax_scale": 0.5}}
    ),
    "falcon": Case("falcon", _FALCON | _TIED | {"multi_query": True}),
    "falcon-new": Case("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-one-norm": Case(
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-sequential": Case("falcon", _FALCON | {"multi_query": False, "parallel_attn": False}),
    "olmo": Case("olmo", NEW),
    "olmo-clip": Case("olmo", NEW | _ODD | _TIED | {"clip_qkv": 0.7, "attention_bias": True}),
    "olmo2": Case("olmo2", NEW),
    "olmo2-mha": Case("olmo2", NEW | _HEADS | _TIED),
    "gemma": Case("gemma", NEW | _TIED | _HEAD_DIM),
    "gemma-mqa": Case("gemma", NEW | _ODD | {"head_dim": 8, "attention_bias": True}),
    "gemma2": Case(
        "gemma2",
        NEW | _TIED | _HEAD_DIM
        | {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 7},
    ),
    "gemma2-no-caps": Case(
        "gemma2",
        NEW | _ODD | _SECOND | {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "phi3": Case("phi3", NEW | {"pad_token_id": 0}),
    "phi3-partial": Case(
        "phi3",
        NEW | _ODD | {"pad_token_id": 0, "sliding_window": WINDOW, "partial_rotary_factor": 0.4, "tie_word_embeddings": True},
    ),
    "stablelm": Case("stablelm", NEW | {"partial_rotary_factor": 0.5}),
    "stablelm-parallel": Case(
        "stablelm", NEW | _ODD | _TIED | {"use_parallel_residual": True, "use_qkv_bias": True, "partial_rotary_factor": 0.2}
    ),
    "starcoder2": Case("starcoder2", NEW | _TIED | {"sliding_window": WINDOW}),
    "starcoder2-no-biases": Case("starcoder2", NEW | _ODD | {"use_bias": False, "hidden_act": "gelu"}),
    "phi3-longrope": Case("phi3", NEW | {"pad_token_id": 0, "original_max_position_embeddings": LENGTH, "rope_scaling": _LONG}),
    "phi3-longrope-long": Case(
        "phi3", NEW | {"pad_token_id": 0, "original_max_position_embeddings": 8, "rope_scaling": _LONG}
    ),
    "qwen2-dynamic": Case("qwen2", NEW | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "qwen2-yarn": Case("qwen2", NEW | {"rope_scaling": _YARN}),
    "gemma3": Case(
        "gemma3_text",
        NEW | _TIED | _SECOND | {"head_dim": 10, "query_pre_attn_scalar": 7, "final_logit_softcapping": 3.0},
    ),
    "gemma3-linear": Case(
        "gemma3_text",
        NEW | _ODD | _SECOND | {"head_dim": 8, "rope_local_base_freq": 50.0, "rope_theta": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "olmo3": Case("olmo3", NEW | _SECOND | {"rope_scaling": _YARN}),
    "olmo3-default-layers": Case("olmo3", NEW | _HEADS | _TIED | {"sliding_window": WINDOW, "num_hidden_layers": 4}),
    "mixtral": Case("mixtral", NEW | _EXPERTS),
    "mixtral-window": Case("mixtral", NEW | _ODD | _TIED | _EXPERTS | {"sliding_window": WINDOW, "num_experts_per_tok": 3}),
    "qwen2_moe": Case("qwen2_moe", NEW | _QWEN_EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen2_moe-normalised": Case(
        "qwen2_moe",
        NEW | _ODD | _TIED | _QWEN_EXPERTS | {"shared_expert_intermediate_size": 8, "norm_topk_prob": True, "qkv_bias": False, "num_experts_per_tok": 4},
    ),
    "qwen3_moe": Case("qwen3_moe", NEW | _HEAD_DIM | _QWEN_EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe-window": Case(
        "qwen3_moe",
        NEW | _ODD | _TIED | _QWEN_EXPERTS
        | {"head_dim": 8, "attention_bias": True, "use_sliding_window": True, "sliding_window": WINDOW, "num_experts_per_tok": 1},
    ),
    "gptj": Case("gptj", _GPTJ),
    "gptj-all-turn": Case("gptj", _GPTJ | {"n_embd": 30, "n_head": 3, "rotary_dim": 10, "n_inner": 20, "activation_function": "relu"}),
    "cohere": Case("cohere", NEW | _TIED),
    "cohere-biases": Case("cohere", NEW | _ODD | {"attention_bias": True, "logit_scale": 0.5}),
    "gpt_oss": Case("gpt_oss", NEW | _EXPERTS | {"head_dim": 8, "sliding_window": WINDOW, "swiglu_limit": 0.7, "rope_scaling": _YARN}),
    "gpt_oss-no-biases": Case(
        "gpt_oss",
        NEW | _ODD | _TIED | _SECOND | _EXPERTS | {"head_dim": 10, "attention_bias": False, "rope_scaling": _YARN | {"truncate": False}},
    ),
}  # fmt: skip

_RMS = NEW | {"rms_norm_eps": 1e-6}
#: Families that transformers has no class for; other_layouts.py has their tensors.
OTHERS = {
    "internlm2": Case("internlm2", _RMS | {"bias": False}),
    "minicpm": Case(
        "minicpm",
        _RMS
        | {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
    ),
    "baichuan": Case(
        "baichuan", {k: v for k, v in _RMS.items() if k != "num_key_value_heads"} | {"model_max_length": 64}
    ),
}  # fmt: skip

#: The last linear layer of each family's MLP.
_DOWN = re.compile(r"(down_proj|fc2|fc_out|c_proj|dense_4h_to_h)$")


def random_tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH), dtype=np.int32)


def transformers_model(case: Case, seed: int) -> Any:
    """With weights wide enough for mistakes to show."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(case.kind, **copy.deepcopy(case.settings))
    torch.manual_seed(seed)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_config(config, **eager)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and not name.endswith("bias")
            parameter.normal_(1.0 if is_scale else 0.0, 0.3)
    return model.float().eval()


def save(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return directory


def computed(model: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """logits (B, T, V), h (L, B, T, D), x_down (L, B, T, F), with experts (L, B, T, R, F), attn_map (L, B, H, T, T), read with hooks."""
    import torch

    seen: dict[str, list] = {"h": [], "x_down": []}

    def keep_output(module, args, output):
        seen["h"].append(output[0] if isinstance(output, tuple) else output)

    def keep_input(module, args):
        seen["x_down"].append(args[0].reshape(BATCH, LENGTH, -1))

    def keep_experts(module, args):
        """A row for every chosen expert, (B, T, R, F)."""
        x, chosen, _ = args
        if hasattr(module, "gate_up_proj_bias"):
            each = torch.einsum("td,trdf->trf", x, module.gate_up_proj[chosen])
            rows = module._apply_gate(each + module.gate_up_proj_bias[chosen])
        else:
            each = torch.einsum("td,trfd->trf", x, module.gate_up_proj[chosen])
            gate, up = each.chunk(2, -1)
            rows = module.act_fn(gate) * up
        if "shared" in seen:
            rows = torch.cat(
                [rows, seen.pop("shared")[0].reshape(len(rows), -1, rows.shape[-1])], 1
            )
        seen["x_down"].append(rows.reshape(BATCH, LENGTH, *rows.shape[1:]))

    def keep_shared(module, args):
        seen["shared"] = [args[0]]

    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for block in layers:
        block.register_forward_hook(keep_output)
        modules = dict(block.named_modules())
        experts = [m for n, m in modules.items() if n.endswith(".experts")]
        if experts:
            experts[0].register_forward_pre_hook(keep_experts)
            shared = [m for n, m in modules.items() if n.endswith("shared_expert.down_proj")]
            for down in shared:
                down.register_forward_pre_hook(keep_shared)
            continue
        (down,) = [m for n, m in modules.items() if _DOWN.search(n) and "attn" not in n]
        down.register_forward_pre_hook(keep_input)
    with torch.no_grad():
        output = model(torch.from_numpy(tokens).long(), output_attentions=True, use_cache=False)
    found = {"logits": output.logits, "attn_map": torch.stack(output.attentions)}
    found |= {name: torch.stack(values) for name, values in seen.items()}
    return {name: value.float().numpy() for name, value in found.items()}
