"""The decoder that every family is: blocks built from their `LayerSpec`s, between an embedding and a head."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.capture import record, tap
from sysout_jax.config import ModelConfig
from sysout_jax.linear import INIT, dense, fused_dense, residual_init
from sysout_jax.models.activations import down_input
from sysout_jax.models.experts import ExpertMlp
from sysout_jax.models.layers import Norm, attend_and_tap, grown, rotary_frequencies, rotate
from sysout_jax.models.spec import LayerSpec, NormSpec


class Attention(nn.Module):
    cfg: ModelConfig
    spec: LayerSpec
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        heads = self.spec.heads

        x_BxTxD = tap(self, "attn_in", x_BxTxD)
        q, k, v = self._project(x_BxTxD)
        if heads.clip is not None:
            q, k, v = (jnp.clip(part, -heads.clip, heads.clip) for part in (q, k, v))
        if heads.norm is not None:
            q, k = self._norm(q, "q_norm"), self._norm(k, "k_norm")
        if self.spec.rotary is not None:
            rotary, length = self.spec.rotary, x_BxTxD.shape[1]
            freqs = rotary_frequencies(rotary.dims, rotary.theta, rotary.scaling, length)
            magnitude = 1.0 if rotary.scaling is None else rotary.scaling.magnitude
            q, k = rotate(q, freqs, magnitude), rotate(k, freqs, magnitude)
            if rotary.scaling is not None and rotary.scaling.query_growth:
                q = grown(q, rotary.scaling)
        mixed = attend_and_tap(self, x_BxTxD, q, k, v, self.kernel)
        init = residual_init(self.cfg.num_layers)
        return dense(self, self.cfg.d_model, "o_proj", heads.o_bias, init)(mixed)

    def _project(self, x_BxTxD):
        """q (B, T, H, Dh), k and v (B, T, K, Dh)."""
        heads = self.spec.heads
        if heads.fused:
            width = heads.heads * heads.head_dim
            qkv_BxTx3xD = fused_dense(self, 3, width, "qkv_proj", heads.qkv_bias)(x_BxTxD)
            qkv = qkv_BxTx3xD.reshape(*qkv_BxTx3xD.shape[:3], heads.heads, heads.head_dim)
            return [qkv[:, :, i] for i in range(3)]
        counts = {"q_proj": heads.heads, "k_proj": heads.kv_heads, "v_proj": heads.kv_heads}
        return [
            dense(self, count * heads.head_dim, name, heads.qkv_bias)(x_BxTxD).reshape(
                *x_BxTxD.shape[:2], count, heads.head_dim
            )
            for name, count in counts.items()
        ]

    def _norm(self, x_BxTxHxDh, name: str):
        heads = self.spec.heads
        assert heads.norm is not None
        norm = Norm(heads.norm, self.dtype, self.param_dtype, name=name)
        if heads.norm_over == "head":
            return norm(x_BxTxHxDh)
        return norm(x_BxTxHxDh.reshape(*x_BxTxHxDh.shape[:2], -1)).reshape(x_BxTxHxDh.shape)


class Mlp(nn.Module):
    cfg: ModelConfig
    spec: LayerSpec
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxTxD):
        mlp, gate_BxTxF = self.spec.mlp, None

        x_BxTxD = tap(self, "mlp_in", x_BxTxD)
        if mlp.gated:
            gate_BxTxF = dense(self, mlp.width, "gate_proj", mlp.up_bias)(x_BxTxD)
            gate_BxTxF = tap(self, "gate", gate_BxTxF)
        up_BxTxF = tap(self, "up", dense(self, mlp.width, "up_proj", mlp.up_bias)(x_BxTxD))
        x_down_BxTxF = tap(self, "x_down", down_input(mlp, gate_BxTxF, up_BxTxF))
        init = residual_init(self.cfg.num_layers)
        return dense(self, self.cfg.d_model, "down_proj", mlp.down_bias, init)(x_down_BxTxF)


class Block(nn.Module):
    """One layer, (B, T, D) to (B, T, D); its equations are those of `LayerSpec`."""

    cfg: ModelConfig
    spec: LayerSpec
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    @nn.compact
    def __call__(self, x_BxTxD):
        spec = self.spec

        attn = Attention(self.cfg, spec, self.dtype, self.param_dtype, self.kernel, name="attn")
        kind = Mlp if spec.mlp.experts is None else ExpertMlp
        mlp = kind(self.cfg, spec, self.dtype, self.param_dtype, name="mlp")
        read_BxTxD = self._norm(spec.attn_norm, "attn_norm", x_BxTxD)
        attn_out_BxTxD = self._norm(spec.attn_post_norm, "attn_post_norm", attn(read_BxTxD))
        if spec.residual_scale is not None:
            attn_out_BxTxD = attn_out_BxTxD * spec.residual_scale
        attn_out_BxTxD = tap(self, "attn_out", attn_out_BxTxD)
        if not spec.parallel:
            x_BxTxD = tap(self, "h_mid", x_BxTxD + attn_out_BxTxD)
        if not spec.parallel or spec.mlp_norm is not None:
            read_BxTxD = self._norm(spec.mlp_norm, "mlp_norm", x_BxTxD)
        written_BxTxD = mlp(read_BxTxD)
        down_BxTxD = self._norm(spec.mlp_post_norm, "mlp_post_norm", written_BxTxD, "down_gain")
        if spec.residual_scale is not None:
            down_BxTxD = down_BxTxD * spec.residual_scale
            gain = spec.residual_scale
            record(self, "down_gain", lambda: jnp.full_like(written_BxTxD, gain))
        down_BxTxD = tap(self, "down", down_BxTxD)
        if spec.parallel:
            x_BxTxD = x_BxTxD + attn_out_BxTxD
        return tap(self, "h", x_BxTxD + down_BxTxD)

    def _norm(self, norm: NormSpec | None, name: str, x_BxTxD, gain: str = ""):
        """The norm of x, or x; what it multiplies x with is tapped as `gain`."""
        if norm is None:
            return x_BxTxD
        module = Norm(norm, self.dtype, self.param_dtype, name=name)
        y_BxTxD = module(x_BxTxD)
        if gain:
            record(self, gain, lambda: module.gain(x_BxTxD))
        return y_BxTxD


class Decoder(nn.Module):
    """Tokens (B, T) to logits (B, T, V). Parameters: embed, positions where learned, layer_0 … layer_{L-1}, final_norm, lm_head."""

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    kernel: str = "auto"

    def setup(self):
        cfg, ends = self.cfg, self.cfg.ends()

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, cfg.d_model, self.dtype, self.param_dtype, embedding_init=INIT)

        self.embed = table(cfg.vocab_size)
        if ends.positions is not None:
            self.positions = table(cfg.context_length + ends.positions)
        self.layer = [self.block(l) for l in range(cfg.num_layers)]
        if ends.final_norm is not None:
            self.final_norm = Norm(ends.final_norm, self.dtype, self.param_dtype)
        if not cfg.tied_embeddings:
            self.lm_head = dense(self, cfg.vocab_size, None, ends.head_bias)

    @nn.nowrap
    def block(self, layer: int) -> Block:
        """Equal for layers that are made of the same."""
        spec = self.cfg.layer(layer)
        return Block(self.cfg, spec, self.dtype, self.param_dtype, self.kernel)

    def embed_tokens(self, tokens_BxT):
        ends = self.cfg.ends()
        x_BxTxD = self.embed(tokens_BxT)
        if ends.embed_scale is not None:
            x_BxTxD = x_BxTxD * jnp.asarray(ends.embed_scale, x_BxTxD.dtype)
        if ends.positions is not None:
            at_T = ends.positions + jnp.arange(tokens_BxT.shape[1])
            x_BxTxD = x_BxTxD + self.positions(at_T)[None]
        return x_BxTxD

    def unembed(self, x_BxTxD):
        ends = self.cfg.ends()
        if ends.final_norm is not None:
            x_BxTxD = self.final_norm(x_BxTxD)
        tied = self.cfg.tied_embeddings
        logits_BxTxV = self.embed.attend(x_BxTxD) if tied else self.lm_head(x_BxTxD)
        if ends.head_scale is not None:
            logits_BxTxV = logits_BxTxV * ends.head_scale
        if ends.softcap is not None:
            logits_BxTxV = ends.softcap * jnp.tanh(logits_BxTxV / ends.softcap)
        return logits_BxTxV

    def __call__(self, tokens_BxT):
        x_BxTxD = self.embed_tokens(tokens_BxT)
        for block in self.layer:
            x_BxTxD = block(x_BxTxD)
        return self.unembed(x_BxTxD)
