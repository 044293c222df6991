"""LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al. 2023, Dubey et al. 2024)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.capture import tap
from sysout_jax.config import LlamaConfig
from sysout_jax.linear import INIT, dense, residual_init
from sysout_jax.models.activations import silu
from sysout_jax.models.layers import Norm, attend_and_tap, rotary_frequencies, rotate


class Attention(nn.Module):
    cfg: LlamaConfig
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        cfg = self.cfg

        def heads(name: str, count: int):
            project = dense(self, count * cfg.head_dim, name, cfg.qkv_bias)
            return project(x_BxTxD).reshape(*x_BxTxD.shape[:2], count, cfg.head_dim)

        freqs = rotary_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        q_BxTxHxDh = rotate(heads("q_proj", cfg.num_heads), freqs)
        k_BxTxKxDh = rotate(heads("k_proj", cfg.num_kv_heads), freqs)
        v_BxTxKxDh = heads("v_proj", cfg.num_kv_heads)
        mixed = attend_and_tap(self, x_BxTxD, q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh, self.kernel)
        out = dense(self, cfg.d_model, "o_proj", cfg.o_bias, residual_init(cfg.num_layers))(mixed)
        tap(self, "attn_in", x_BxTxD)
        tap(self, "attn_out", out)
        return out


class Mlp(nn.Module):
    cfg: LlamaConfig
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxTxD):
        cfg = self.cfg

        gate_BxTxF = dense(self, cfg.d_ff, "gate_proj", cfg.mlp_bias)(x_BxTxD)
        up_BxTxF = dense(self, cfg.d_ff, "up_proj", cfg.mlp_bias)(x_BxTxD)
        x_down_BxTxF = silu(gate_BxTxF) * up_BxTxF
        down = dense(self, cfg.d_model, "down_proj", cfg.mlp_bias, residual_init(cfg.num_layers))
        down_BxTxD = down(x_down_BxTxF)
        tap(self, "mlp_in", x_BxTxD)
        tap(self, "gate", gate_BxTxF)
        tap(self, "up", up_BxTxF)
        tap(self, "x_down", x_down_BxTxF)
        tap(self, "down", down_BxTxD)
        return down_BxTxD


class Block(nn.Module):
    cfg: LlamaConfig
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        def norm(name: str):
            return Norm(self.cfg.norm_eps, self.dtype, self.param_dtype, name=name)

        attn = Attention(self.cfg, self.dtype, self.param_dtype, self.kernel, name="attn")
        mlp = Mlp(self.cfg, self.dtype, self.param_dtype, name="mlp")
        x_BxTxD = x_BxTxD + attn(norm("attn_norm")(x_BxTxD))
        tap(self, "h_mid", x_BxTxD)
        x_BxTxD = x_BxTxD + mlp(norm("mlp_norm")(x_BxTxD))
        tap(self, "h", x_BxTxD)
        return x_BxTxD


class Llama(nn.Module):
    """Tokens (B, T) to logits (B, T, V). Parameters: embed, layer_0 … layer_{L-1}, final_norm, lm_head unless tied."""

    cfg: LlamaConfig
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    def setup(self):
        cfg = self.cfg
        self.embed = nn.Embed(
            cfg.vocab_size, cfg.d_model, self.dtype, self.param_dtype, embedding_init=INIT
        )
        self.layer = [self.block() for _ in range(cfg.num_layers)]
        self.final_norm = Norm(cfg.norm_eps, self.dtype, self.param_dtype)
        if not cfg.tied_embeddings:
            self.lm_head = dense(self, cfg.vocab_size, None, False)

    @nn.nowrap
    def block(self) -> Block:
        return Block(self.cfg, self.dtype, self.param_dtype, self.kernel)

    def embed_tokens(self, tokens_BxT):
        return self.embed(tokens_BxT)

    def unembed(self, x_BxTxD):
        x_BxTxD = self.final_norm(x_BxTxD)
        return self.embed.attend(x_BxTxD) if self.cfg.tied_embeddings else self.lm_head(x_BxTxD)

    def __call__(self, tokens_BxT):
        x_BxTxD = self.embed_tokens(tokens_BxT)
        for block in self.layer:
            x_BxTxD = block(x_BxTxD)
        return self.unembed(x_BxTxD)
