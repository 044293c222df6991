"""What the readers of several families' GGUF files share: the names and keys of llama.cpp's converters.

No file says which GELU a model has, or how its layers are wired: that is what the family's published models have.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.checks import shown
from sysout_jax.config import RULES
from sysout_jax.errors import InputError
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import (
    INTO_EXPERTS,
    ONE_OUTPUT,
    OUT_OF_EXPERTS,
    PAIRED,
    PAIRED_LINEAR,
    STACKED_INTO,
    STACKED_OUT_OF,
    WITH_ONE,
    Stored,
    biased,
    fused,
    layer_norm,
    linear,
)
from sysout_jax.rope_scaling import RopeScaling

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
#: Tensors that are read as settings.
ROPE_TENSORS = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})
EMBEDDING, HEAD = "token_embd.weight", "output.weight"

#: Our paths ← their names; a config says which of them there are. Every matrix is stored (out, in).
NAMES: dict[str, Stored] = {
    "embed/embedding": Stored(EMBEDDING),
    "positions/embedding": Stored("position_embd.weight"),
    **layer_norm("layer_{l}/attn_norm", "blk.{l}.attn_norm"),
    **biased("layer_{l}/attn/q_proj", "blk.{l}.attn_q"),
    **biased("layer_{l}/attn/k_proj", "blk.{l}.attn_k"),
    **biased("layer_{l}/attn/v_proj", "blk.{l}.attn_v"),
    **biased("layer_{l}/attn/qkv_proj", "blk.{l}.attn_qkv"),
    **biased("layer_{l}/attn/o_proj", "blk.{l}.attn_output"),
    "layer_{l}/attn/q_norm/scale": Stored("blk.{l}.attn_q_norm.weight"),
    "layer_{l}/attn/k_norm/scale": Stored("blk.{l}.attn_k_norm.weight"),
    "layer_{l}/attn_post_norm/scale": Stored("blk.{l}.post_attention_norm.weight"),
    **layer_norm("layer_{l}/mlp_norm", "blk.{l}.ffn_norm"),
    **biased("layer_{l}/mlp/gate_proj", "blk.{l}.ffn_gate"),
    **biased("layer_{l}/mlp/up_proj", "blk.{l}.ffn_up"),
    **biased("layer_{l}/mlp/down_proj", "blk.{l}.ffn_down"),
    "layer_{l}/mlp_post_norm/scale": Stored("blk.{l}.post_ffw_norm.weight"),
    **layer_norm("final_norm", "output_norm"),
    **biased("lm_head", "output"),
}
#: The same with q and k turned to Meta's neighbouring pairs, as the converters of LLaMA do.
PAIRED_NAMES: dict[str, Stored] = NAMES | {
    f"layer_{{l}}/attn/{part}_proj/{ours}": Stored(f"blk.{{l}}.attn_{part}.{theirs}", form)
    for part in "qk"
    for ours, theirs, form in (("kernel", "weight", PAIRED_LINEAR), ("bias", "bias", PAIRED))
}
#: The same with all of q, all of k, all of v in one matrix.
FUSED_NAMES: dict[str, Stored] = NAMES | fused("layer_{l}/attn", "blk.{l}.attn_qkv", grouped=False)
#: The same with the scales of norms as Gemma multiplies with them.
GEMMA_NAMES: dict[str, Stored] = {
    ours: Stored(stored.name, WITH_ONE) if ours.endswith("norm/scale") else stored
    for ours, stored in NAMES.items()
}


def with_experts(names: dict[str, Stored]) -> dict[str, Stored]:
    """The same with a router and experts in place of the MLP: stacked, or one after the other as the first files have them."""
    experts = {ours: stored for ours, stored in names.items() if "/mlp/" not in ours}
    for part in ("gate", "up", "down"):
        stacked, apart = (
            (STACKED_OUT_OF, OUT_OF_EXPERTS) if part == "down" else (STACKED_INTO, INTO_EXPERTS)
        )
        first = Stored(f"blk.{{l}}.ffn_{part}.{{e}}.weight", apart)
        stored = Stored(f"blk.{{l}}.ffn_{part}_exps.weight", stacked, first)
        experts[f"layer_{{l}}/mlp/{part}_proj/kernel"] = stored
    return experts | {"layer_{l}/mlp/router": linear("blk.{l}.ffn_gate_inp.weight")}


def with_shared_expert(names: dict[str, Stored]) -> dict[str, Stored]:
    """The same of `with_experts` with one more that every token goes through, and its gate; they were always stacked."""
    experts = dict(names)
    for part in ("gate", "up", "down"):
        ours = f"layer_{{l}}/mlp/{part}_proj/kernel"
        shared = f"blk.{{l}}.ffn_{part}_shexp.weight"
        experts[ours] = dataclasses.replace(names[ours], otherwise=None, shared=shared)
    gate = Stored("blk.{l}.ffn_gate_inp_shexp.weight", ONE_OUTPUT)
    return experts | {"layer_{l}/mlp/shared_gate": gate}


def has_experts(fields: Fields) -> bool:
    """Whether a file says that it has experts."""
    return fields.peek("expert_count") not in (None, 0)


#: Our fields ← their keys.
SIZES = {
    "context_length": "context_length",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
}
RMS_EPS, EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


def read_sizes(file: GgufFile, fields: Fields, eps: str) -> dict[str, Any]:
    """The fields that every config has; `eps` is their name of the norms' epsilon."""
    return {
        **fields.take_table(SIZES | {"norm_eps": eps}),
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "tied_embeddings": HEAD not in file.tensors,
    }


def read_experts(fields: Fields) -> dict[str, Any]:
    """How many experts there are, and how many of them a token goes through."""
    fields.must_be("expert_gating_func", 1)  # softmax
    return {
        "num_experts": fields.take("expert_count", RULES["num_experts"]),
        "experts_used": fields.take("expert_used_count", RULES["experts_used"]),
    }


def read_rotary(
    file: GgufFile, fields: Fields, eps: str, partial: bool = False, theta: float = 10_000.0
) -> dict[str, Any]:
    """The fields of `RotaryConfig` but windows; of a family whose heads may turn in part, or must not."""
    if not has_experts(fields):
        fields.take_any("expert_count")
    plain = read_sizes(file, fields, eps)
    heads = plain["num_heads"]
    head_dim = fields.take("attention.key_length", RULES["head_dim"], plain["d_model"] // heads)
    fields.must_be("attention.value_length", head_dim)
    dims = head_dim
    if partial:
        dims = fields.take("rope.dimension_count", RULES["rotary_dims"], head_dim)
        plain["rotary_dims"] = None if dims == head_dim else dims
    fields.must_be("rope.dimension_count", head_dim)
    return {
        **plain,
        "num_kv_heads": fields.take("attention.head_count_kv", RULES["num_kv_heads"], heads),
        "head_dim": head_dim,
        "rope_theta": fields.take("rope.freq_base", RULES["rope_theta"], theta),
        "rope_scaling": _rope_scaling(file, fields, dims, plain["context_length"]),
    }


def read_paired(file: GgufFile, fields: Fields) -> dict[str, Any]:
    """The same of files of `PAIRED_NAMES`, the oldest of which say how q and k lie."""
    fields.must_be("tensor_data_layout", "Meta AI original pth")
    return read_rotary(file, fields, RMS_EPS)


def read_biases(file: GgufFile) -> dict[str, Any]:
    """The biases of `LlamaConfig`, by the tensors of the first layer."""
    return {
        "qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "o_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }


def _rope_scaling(file: GgufFile, fields: Fields, dims: int, context: int) -> RopeScaling | None:
    """Linear or YaRN, by key; or by tensor: a divisor for every pair (Llama 3), one for long and one for short texts (LongRoPE)."""
    linear = fields.take("rope.scale_linear", RULES["factor"], 1.0)
    kind = fields.take_any("rope.scaling.type", "none")
    factor = fields.take("rope.scaling.factor", RULES["factor"], linear)
    original = fields.take(
        "rope.scaling.original_context_length", RULES["original_context"], context
    )
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise InputError(
            f"rope.scaling.type {shown(kind)} is not implemented; expected none, linear, yarn or longrope"
        )
    tensors = [name for name in sorted(ROPE_TENSORS) if name in file.tensors]
    if tensors and (kind == "yarn" or factor != 1.0):
        raise InputError(
            f"{tensors[0]} beside rope.scaling.type {shown(kind)} with a factor of {factor:g}; expected one scaling"
        )
    if kind == "yarn":
        return _yarn(fields, float(factor), original)
    if LONG_FACTORS in file.tensors or kind == "longrope":
        return _longrope(file, fields, dims, context / original, original)
    if ROPE_FACTORS in file.tensors:
        return RopeScaling(kind="factors", factor=1.0, factors=_divisors(file, ROPE_FACTORS, dims))
    return None if factor == 1.0 else RopeScaling(kind="linear", factor=factor)


def _yarn(fields: Fields, factor: float, original: int) -> RopeScaling:
    """What is rotated grows as llama.cpp lets it grow, 0.1 · ln(factor) + 1, which no file can change here."""
    for name in ("attn_factor", "yarn_ext_factor", "yarn_attn_factor"):
        fields.must_be(f"rope.scaling.{name}", 1.0)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=fields.take("rope.scaling.yarn_beta_fast", RULES["factor"], 32.0),
        beta_slow=fields.take("rope.scaling.yarn_beta_slow", RULES["factor"], 1.0),
        magnitude=0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0,
    )


def _longrope(
    file: GgufFile, fields: Fields, dims: int, factor: float, original: int
) -> RopeScaling:
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_context=original,
        factors=_divisors(file, LONG_FACTORS, dims),
        short_factors=_divisors(file, SHORT_FACTORS, dims),
        magnitude=fields.take("rope.scaling.attn_factor", RULES["factor"], magnitude),
    )


def _divisors(file: GgufFile, name: str, dims: int) -> tuple[float, ...]:
    if name not in file.tensors:
        raise InputError(f"{name} is missing; expected {dims // 2} divisors of rotary frequencies")
    factors = file.read(name).astype(np.float64).reshape(-1)
    if len(factors) != dims // 2:
        raise InputError(f"{name} holds {len(factors)} divisors, expected {dims // 2}")
    return tuple(factors.tolist())
