"""Pieces shared by the model families: norms, rotary positions, the taps around attention."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sysout_jax.attention import VARIANTS, attention_map, attention_spec
from sysout_jax.attention.kernels import with_rows
from sysout_jax.attention.variants import beside_own_sink
from sysout_jax.capture import record, tap
from sysout_jax.models.spec import NormSpec
from sysout_jax.rope_scaling import RopeScaling


class Norm(nn.Module):
    """RMSNorm or LayerNorm of the last axis, in float32; returned in the compute dtype."""

    spec: NormSpec
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxTxD):
        D = x_BxTxD.shape[-1]
        if self.spec.scale:
            ones = nn.initializers.constant(1.0 - self.spec.offset)
            scale_D = self.param("scale", ones, (D,), self.param_dtype)
        else:
            scale_D = jnp.ones((D,), self.param_dtype)
        y_BxTxD = normalise(x_BxTxD, self._whole(scale_D), self.spec.eps, self.spec.centred)
        if self.spec.bias:
            bias_D = self.param("bias", nn.initializers.zeros, (D,), self.param_dtype)
            y_BxTxD = y_BxTxD + _last(bias_D, y_BxTxD.ndim)
        return y_BxTxD.astype(self.dtype)

    def gain(self, x_BxTxD) -> jax.Array:
        """What an RMSNorm multiplies every element with, (B, T, D)."""
        if self.spec.centred:
            raise ValueError("a norm that subtracts a mean is no multiplication")
        scale_D: jax.Array = self.get_variable("params", "scale")
        x = x_BxTxD.astype(jnp.promote_types(x_BxTxD.dtype, jnp.float32))
        inverse_BxTx1 = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.spec.eps)
        return inverse_BxTx1 * self._whole(scale_D)[None, None]

    def _whole(self, scale_D):
        if not self.spec.offset:
            return scale_D
        return scale_D.astype(jnp.promote_types(scale_D.dtype, jnp.float32)) + self.spec.offset


def _last(x_D: jax.Array, axes: int) -> jax.Array:
    """A vector beside arrays of so many axes, the last of which is its own."""
    return x_D.reshape((1,) * (axes - 1) + x_D.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalise(x_BxTxD: jax.Array, scale_D: jax.Array, eps: float, centred: bool) -> jax.Array:
    """x over its root mean square, times `scale`; with `centred` less its mean first. At least float32.

    Its gradient keeps x and two numbers a token; jax's own keeps scale and root as large as x, which costs a step of GPT-2 5 to 10 % on a CPU.
    The mean square is that of the centred values: E[x²] − E[x]² cancels catastrophically exactly where outliers are.
    """
    return _normalise(x_BxTxD, scale_D, eps, centred)[0]


def _normalise(x_BxTxD, scale_D, eps: float, centred: bool):
    x = x_BxTxD.astype(jnp.promote_types(x_BxTxD.dtype, jnp.float32))
    mean_BxTx1 = x.mean(-1, keepdims=True) if centred else jnp.zeros_like(x[..., :1])
    x = x - mean_BxTx1
    inverse_BxTx1 = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * inverse_BxTx1 * _last(scale_D, x.ndim), (x_BxTxD, mean_BxTx1, inverse_BxTx1, scale_D)


def _normalise_backward(eps: float, centred: bool, residuals, grad_BxTxD):
    x_BxTxD, mean_BxTx1, inverse_BxTx1, scale_D = residuals
    unit = (x_BxTxD.astype(mean_BxTx1.dtype) - mean_BxTx1) * inverse_BxTx1
    scaled = grad_BxTxD * _last(scale_D, grad_BxTxD.ndim)
    dx = scaled - unit * (scaled * unit).mean(-1, keepdims=True)
    if centred:
        dx = dx - scaled.mean(-1, keepdims=True)
    dscale_D = (grad_BxTxD * unit).sum(tuple(range(unit.ndim - 1)))
    return (dx * inverse_BxTx1).astype(x_BxTxD.dtype), dscale_D.astype(scale_D.dtype)


normalise.defvjp(_normalise, _normalise_backward)


def rotary_frequencies(
    dims: int, theta: float, scaling: RopeScaling | None, length: int = 1
) -> np.ndarray:
    """Radians per position of the dims/2 rotating pairs, float32, in a sequence of `length` tokens (Su et al. 2021).

    Scalings as transformers defines them; yarn is of Peng et al. 2023, longrope of Ding et al. 2024.
    """
    exponents = np.arange(0, dims, 2, dtype=np.float64) / dims
    freqs = 1.0 / theta**exponents
    if scaling is None:
        return freqs.astype(np.float32)
    if scaling.kind == "linear":
        return (freqs / scaling.factor).astype(np.float32)
    if scaling.kind == "factors":
        return (freqs / np.array(scaling.factors)).astype(np.float32)
    if scaling.kind == "longrope":
        fits = length <= scaling.original_context
        return (freqs / np.array(scaling.short_factors if fits else scaling.factors)).astype("f")
    if scaling.kind == "yarn":
        keep = 1 - _yarn_ramp(dims, theta, scaling)
        return (keep * freqs + (1 - keep) * freqs / scaling.factor).astype(np.float32)
    # llama3: slow pairs (less than low_freq_factor turns in the original context) are divided, fast ones kept, blended between
    turns = scaling.original_context * freqs / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (keep * freqs + (1 - keep) * freqs / scaling.factor).astype(np.float32)


def _yarn_ramp(dims: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """(dims/2,) 0 for pairs that turn `beta_fast` times and more in the original context, 1 from `beta_slow` times on down, in between a line."""

    def pair_of(turns: float) -> float:
        return dims * np.log(scaling.original_context / (turns * 2 * np.pi)) / (2 * np.log(theta))

    first, last = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = np.floor(first), np.ceil(last)
    first, last = max(first, 0.0), min(last, dims - 1.0)
    if first == last:
        last += 0.001  # as transformers does
    return np.clip((np.arange(dims // 2) - first) / (last - first), 0.0, 1.0)


def rotate(x_BxTxHxDh: jax.Array, freqs: np.ndarray, magnitude: float = 1.0) -> jax.Array:
    """Turn the pair (i, i + R) of every head by position times frequency i of R, times `magnitude`; what lies beyond 2R stays.

    In float32, returned in the input's dtype.
    """
    T, half = x_BxTxHxDh.shape[1], len(freqs)
    angle_TxHalf = jnp.arange(T, dtype=jnp.float32)[:, None] * freqs[None, :]
    angle_1xTx1xHalf = angle_TxHalf[None, :, None, :]
    cos, sin = jnp.cos(angle_1xTx1xHalf), jnp.sin(angle_1xTx1xHalf)
    if magnitude != 1.0:
        cos, sin = cos * magnitude, sin * magnitude
    x = x_BxTxHxDh.astype(jnp.promote_types(x_BxTxHxDh.dtype, jnp.float32))
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if x.shape[-1] > 2 * half:
        turned.append(x[..., 2 * half :])
    return jnp.concatenate(turned, axis=-1).astype(x_BxTxHxDh.dtype)


def grown(q_BxTxHxDh: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Queries made longer from one multiple of the original context to the next, see `RopeScaling.query_growth`."""
    spans_T = np.arange(q_BxTxHxDh.shape[1]) // scaling.original_context
    growth_T = 1 + scaling.query_growth * np.log(1 + spans_T)
    return q_BxTxHxDh * jnp.asarray(growth_T, q_BxTxHxDh.dtype)[None, :, None, None]


def attend_and_tap(
    module: nn.Module, x_BxTxD, q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh, kernel: str
) -> jax.Array:
    """The config's variant of attention, its taps written in `module`'s name; returns the heads side by side, (B, T, H*Dh).

    `x` is what q, k and v were projected from; some variants read it again.
    """
    cfg = module.cfg
    variant = VARIANTS[cfg.attention]
    q_BxTxHxDh = tap(module, "q", q_BxTxHxDh)
    k_BxTxKxDh = tap(module, "k", k_BxTxKxDh)
    v_BxTxKxDh = tap(module, "v", v_BxTxKxDh)
    spec = attention_spec(cfg, module.spec.attention, q_BxTxHxDh.shape[1])
    if module.spec.heads.sink:
        kernel = with_rows(kernel, q_BxTxHxDh.dtype, spec)
    mixed = variant(module, x_BxTxD, q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh, kernel, spec)
    if module.spec.heads.sink:
        mixed = beside_own_sink(module, mixed)
    out_BxTxHxDh, lse_BxHxT, sums_BxHxS = mixed.attended
    if lse_BxHxT is not None:
        record(module, "lse", lambda: lse_BxHxT)
    if sums_BxHxS is not None:
        record(module, "attn_sums", lambda: sums_BxHxS)
        record(
            module,
            "attn_map",
            lambda: attention_map(q_BxTxHxDh, k_BxTxKxDh, lse_BxHxT, spec),
        )
    if mixed.scale is not None:
        record(module, "attn_scale", mixed.scale)
    if mixed.mass is not None:
        record(module, "sink_mass", mixed.mass)
    out_BxTxHxDh = tap(module, "attn_heads", out_BxTxHxDh)
    return out_BxTxHxDh.reshape(*out_BxTxHxDh.shape[:2], -1)
