"""nanoGPT and the paper's five variants of it, written out in float64 numpy with the extra key appended, and random weights for them."""

from __future__ import annotations

import math

import numpy as np

ARGS = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "block_size": 32,
    "bias": False,
    "vocab_size": 29,
    "dropout": 0.0,
}
MODEL_TYPES = (
    "gpt2_default",
    "gpt2_vbias",
    "gpt2_cabias",
    "gpt2_attn_bias",
    "gpt2_ca_softmax",
    "gpt2_sigmoid",
)

_erf = np.vectorize(math.erf)


def random_weights(model_type: str, seed: int, bias: bool = False) -> dict[str, np.ndarray]:
    """float32, named and shaped as the paper's model files do."""
    rng = np.random.default_rng(seed)
    D, H, V, T = (ARGS[k] for k in ("n_embd", "n_head", "vocab_size", "block_size"))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {"transformer.wte.weight": normal(V, D), "transformer.wpe.weight": normal(T, D)}
    for l in range(ARGS["n_layer"]):
        h = f"transformer.h.{l}."
        weights |= {h + f"ln_{i}.weight": 1 + normal(D) for i in (1, 2)}
        weights |= {
            h + "attn.c_attn.weight": normal(3 * D, D),
            h + "attn.c_proj.weight": normal(D, D),
            h + "mlp.c_fc.weight": normal(4 * D, D),
            h + "mlp.c_proj.weight": normal(D, 4 * D),
        }
        if bias:
            for name in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
                weights[h + name + ".bias"] = normal(len(weights[h + name + ".weight"]))
        if model_type == "gpt2_vbias":
            weights[h + "attn.v_bias"] = normal(D)
        if model_type in ("gpt2_cabias", "gpt2_attn_bias"):
            weights |= {h + f"attn.{x}_bias": normal(1, H, 1, D // H) for x in "kv"}
        if model_type == "gpt2_ca_softmax":
            weights[h + "attn.context_scale.0.weight"] = normal(H, D)
            weights[h + "attn.context_scale.0.bias"] = normal(H)
        if model_type == "gpt2_sigmoid":  # a buffer that its state dict holds
            weights[h + "attn.bias"] = np.tril(np.ones((T, T), np.float32))[None, None]
    weights["transformer.ln_f.weight"] = 1 + normal(D)
    if bias:
        weights["transformer.ln_f.bias"] = normal(D)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def logits(model_type: str, weights: dict[str, np.ndarray], tokens_T: np.ndarray) -> np.ndarray:
    """(T, V) of one sequence."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    D, H, T = ARGS["n_embd"], ARGS["n_head"], len(tokens_T)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w.get(name + ".bias", 0.0)

    x = w["transformer.wte.weight"][tokens_T] + w["transformer.wpe.weight"][:T]
    for l in range(ARGS["n_layer"]):
        h = f"transformer.h.{l}."
        a = norm(x, h + "ln_1")
        qkv = linear(a, h + "attn.c_attn").reshape(T, 3, H, D // H)
        q, k, v = (qkv[:, i].transpose(1, 0, 2) for i in range(3))
        out_HxTxDh = _attention(model_type, w, h + "attn.", a, q, k, v)
        x = x + linear(out_HxTxDh.transpose(1, 0, 2).reshape(T, D), h + "attn.c_proj")
        up = linear(norm(x, h + "ln_2"), h + "mlp.c_fc")
        x = x + linear(0.5 * up * (1 + _erf(up / math.sqrt(2))), h + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


def _attention(model_type, w, prefix, a_TxD, q, k, v) -> np.ndarray:
    H, T, Dh = q.shape
    causal = np.tril(np.ones((T, T), bool))
    scores = np.where(causal, q @ k.transpose(0, 2, 1) / math.sqrt(Dh), -np.inf)

    def softmax(s):
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    if model_type == "gpt2_sigmoid":
        return 1 / (1 + np.exp(-(scores - math.log(T)))) @ v
    if model_type == "gpt2_default":
        return softmax(scores) @ v
    if model_type == "gpt2_vbias":
        return softmax(scores) @ v + w[prefix + "v_bias"].reshape(H, 1, Dh)
    if model_type == "gpt2_ca_softmax":
        logit = a_TxD @ w[prefix + "context_scale.0.weight"].T + w[prefix + "context_scale.0.bias"]
        return softmax(scores) @ v * (2 / (1 + np.exp(-logit))).T[:, :, None]
    k_extra, v_extra = w[prefix + "k_bias"][0], w[prefix + "v_bias"][0]
    extra = q @ k_extra.transpose(0, 2, 1) / math.sqrt(Dh)
    probabilities = softmax(np.concatenate([extra, scores], -1))
    if model_type == "gpt2_attn_bias":
        return probabilities @ np.concatenate([v_extra, v], 1)
    return softmax(scores) @ v + probabilities @ np.concatenate([v_extra, 0 * v], 1)
