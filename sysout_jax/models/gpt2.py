"""GPT-2: LayerNorm, learned positions, fused QKV, GELU (Radford et al. 2019), in the HF and the nanoGPT convention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.capture import tap
from sysout_jax.config import Gpt2Config
from sysout_jax.linear import INIT, dense, fused_dense, residual_init
from sysout_jax.models.activations import gelu, gelu_tanh
from sysout_jax.models.layers import Norm, attend_and_tap

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"gelu": gelu, "gelu_tanh": gelu_tanh}


class Attention(nn.Module):
    cfg: Gpt2Config
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        cfg = self.cfg

        qkv_BxTx3xD = fused_dense(self, 3, cfg.d_model, "qkv_proj", cfg.bias)(x_BxTxD)
        qkv_BxTx3xHxDh = qkv_BxTx3xD.reshape(*qkv_BxTx3xD.shape[:3], cfg.num_heads, cfg.head_dim)
        q, k, v = (qkv_BxTx3xHxDh[:, :, i] for i in range(3))
        mixed = attend_and_tap(self, x_BxTxD, q, k, v, self.kernel)
        out = dense(self, cfg.d_model, "o_proj", cfg.bias, residual_init(cfg.num_layers))(mixed)
        tap(self, "attn_in", x_BxTxD)
        tap(self, "attn_out", out)
        return out


class Mlp(nn.Module):
    cfg: Gpt2Config
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxTxD):
        cfg = self.cfg

        up_BxTxF = dense(self, cfg.d_ff, "up_proj", cfg.bias)(x_BxTxD)
        x_down_BxTxF = ACTIVATIONS[cfg.activation](up_BxTxF)
        down = dense(self, cfg.d_model, "down_proj", cfg.bias, residual_init(cfg.num_layers))
        down_BxTxD = down(x_down_BxTxF)
        tap(self, "mlp_in", x_BxTxD)
        tap(self, "up", up_BxTxF)
        tap(self, "x_down", x_down_BxTxF)
        tap(self, "down", down_BxTxD)
        return down_BxTxD


def _norm(cfg: Gpt2Config, dtype, param_dtype, name: str | None = None) -> Norm:
    return Norm(cfg.norm_eps, dtype, param_dtype, centred=True, bias=cfg.bias, name=name)


class Block(nn.Module):
    cfg: Gpt2Config
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        attn = Attention(self.cfg, self.dtype, self.param_dtype, self.kernel, name="attn")
        mlp = Mlp(self.cfg, self.dtype, self.param_dtype, name="mlp")
        norms = (
            _norm(self.cfg, self.dtype, self.param_dtype, name)
            for name in ("attn_norm", "mlp_norm")
        )
        x_BxTxD = x_BxTxD + attn(next(norms)(x_BxTxD))
        tap(self, "h_mid", x_BxTxD)
        x_BxTxD = x_BxTxD + mlp(next(norms)(x_BxTxD))
        tap(self, "h", x_BxTxD)
        return x_BxTxD


class Gpt2(nn.Module):
    """Tokens (B, T) to logits (B, T, V). Parameters: embed, positions, layer_0 … layer_{L-1}, final_norm, lm_head unless tied."""

    cfg: Gpt2Config
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    def setup(self):
        cfg = self.cfg
        self.embed = nn.Embed(
            cfg.vocab_size, cfg.d_model, self.dtype, self.param_dtype, embedding_init=INIT
        )
        self.positions = nn.Embed(
            cfg.context_length, cfg.d_model, self.dtype, self.param_dtype, embedding_init=INIT
        )
        self.layer = [self.block() for _ in range(cfg.num_layers)]
        self.final_norm = _norm(cfg, self.dtype, self.param_dtype)
        if not cfg.tied_embeddings:
            self.lm_head = dense(self, cfg.vocab_size, None, False)

    @nn.nowrap
    def block(self) -> Block:
        return Block(self.cfg, self.dtype, self.param_dtype, self.kernel)

    def embed_tokens(self, tokens_BxT):
        return self.embed(tokens_BxT) + self.positions(jnp.arange(tokens_BxT.shape[1]))[None]

    def unembed(self, x_BxTxD):
        x_BxTxD = self.final_norm(x_BxTxD)
        return self.embed.attend(x_BxTxD) if self.cfg.tied_embeddings else self.lm_head(x_BxTxD)

    def __call__(self, tokens_BxT):
        x_BxTxD = self.embed_tokens(tokens_BxT)
        for block in self.layer:
            x_BxTxD = block(x_BxTxD)
        return self.unembed(x_BxTxD)
