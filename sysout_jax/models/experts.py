"""A mixture of experts: a router sends every token through a few of many MLPs (Shazeer et al. 2017, Jiang et al. 2024).

The kernels of all experts lie side by side as those of one wide MLP, (D, E·F) and (E·F, D). Activations have a row for every chosen expert,
(B, T, R, F); nothing is as large as all tokens times all experts. The products stream over the experts, one after another for all tokens, those
that did not choose it included: simple, the same for every choice, and E / R times the work that a sorted product would do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.capture import tap
from sysout_jax.config import ModelConfig
from sysout_jax.linear import INIT, matrix_product, residual_init
from sysout_jax.models.activations import down_input
from sysout_jax.models.spec import LayerSpec


class IntoExperts(nn.Module):
    """Linear layers of `experts` experts: x (B, T, D) and the chosen ones (B, T, R) to (B, T, R, F) with `features` = F."""

    features: int
    experts: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_BxTxD, chosen_BxTxR):
        F = self.features
        shape = (x_BxTxD.shape[-1], self.experts * F)
        kernel_DxEF = self.param("kernel", INIT, shape, self.param_dtype).astype(self.dtype)

        def of_expert(rows_BxTxRxF, e):
            part_DxF = jax.lax.dynamic_slice_in_dim(kernel_DxEF, e * F, F, axis=1)
            y_BxTxF = matrix_product(x_BxTxD.astype(self.dtype), part_DxF)
            here_BxTxRx1 = (chosen_BxTxR == e)[..., None]
            return jnp.where(here_BxTxRx1, y_BxTxF[:, :, None], rows_BxTxRxF), None

        none = jnp.zeros((*chosen_BxTxR.shape, F), self.dtype)
        rows_BxTxRxF = jax.lax.scan(of_expert, none, jnp.arange(self.experts))[0]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.experts * F,), self.param_dtype)
            rows_BxTxRxF = rows_BxTxRxF + bias.astype(self.dtype).reshape(-1, F)[chosen_BxTxR]
        return rows_BxTxRxF


class OutOfExperts(nn.Module):
    """The linear layers that end them: rows (B, T, R, F), the experts that they belong to and their weights (B, T, R) to (B, T, D)."""

    features: int
    experts: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    kernel_init: Callable[..., jax.Array]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x_BxTxRxF, chosen_BxTxR, weight_BxTxR):
        F, wide = x_BxTxRxF.shape[-1], jnp.promote_types(self.dtype, jnp.float32)
        shape = (self.experts * F, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel_EFxD, x_BxTxRxF = kernel.astype(self.dtype), x_BxTxRxF.astype(self.dtype)

        def add_expert(total_BxTxD, e):
            here_BxTxR = chosen_BxTxR == e
            # at most one row of a token belongs to an expert
            x_BxTxF = jnp.where(here_BxTxR[..., None], x_BxTxRxF, 0).sum(2)
            weight_BxTx1 = jnp.where(here_BxTxR, weight_BxTxR, 0).sum(2, keepdims=True)
            part_FxD = jax.lax.dynamic_slice_in_dim(kernel_EFxD, e * F, F, axis=0)
            y_BxTxD = matrix_product(x_BxTxF, part_FxD).astype(wide)
            return total_BxTxD + weight_BxTx1.astype(wide) * y_BxTxD, None

        none = jnp.zeros((*x_BxTxRxF.shape[:2], self.features), wide)
        y_BxTxD = jax.lax.scan(add_expert, none, jnp.arange(self.experts))[0]
        if self.use_bias:
            sizes = (self.experts, self.features)
            bias_ExD = self.param("bias", nn.initializers.zeros, sizes, self.param_dtype)
            weighted = weight_BxTxR.astype(wide)[..., None] * bias_ExD.astype(wide)[chosen_BxTxR]
            y_BxTxD = y_BxTxD + weighted.sum(2)
        return y_BxTxD.astype(self.dtype)


class ExpertMlp(nn.Module):
    """What stands in a layer where others have one MLP."""

    cfg: ModelConfig
    spec: LayerSpec
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BxTxD):
        mlp, experts = self.spec.mlp, self.spec.mlp.experts
        assert experts is not None

        def into(name: str):
            sizes = (mlp.width, experts.total, self.dtype, self.param_dtype)
            return IntoExperts(*sizes, mlp.up_bias, name=name)(x_BxTxD, chosen_BxTxR)

        x_BxTxD = tap(self, "mlp_in", x_BxTxD)
        chosen_BxTxR, weight_BxTxR = self._route(x_BxTxD)
        chosen_BxTxR = tap(self, "expert", chosen_BxTxR)
        weight_BxTxR = tap(self, "expert_weight", weight_BxTxR)
        gate = tap(self, "gate", into("gate_proj")) if mlp.gated else None
        up = tap(self, "up", into("up_proj"))
        x_down_BxTxRxF = tap(self, "x_down", down_input(mlp, gate, up))
        init = residual_init(self.cfg.num_layers)
        sizes = (self.cfg.d_model, experts.total, self.dtype, self.param_dtype)
        down = OutOfExperts(*sizes, init, mlp.down_bias, name="down_proj")
        return down(x_down_BxTxRxF, chosen_BxTxR, weight_BxTxR)

    def _route(self, x_BxTxD) -> tuple[jax.Array, jax.Array]:
        """The chosen experts and their weights, (B, T, R), largest first, shared ones last; the router's matrix is no linear layer that anybody compresses."""
        experts = self.spec.mlp.experts
        assert experts is not None
        router = self.param("router", INIT, (x_BxTxD.shape[-1], experts.count), self.param_dtype)
        logits_BxTxE = matrix_product(x_BxTxD, router.astype(x_BxTxD.dtype))
        if experts.router_bias:
            zeros = nn.initializers.zeros
            bias_E = self.param("router_bias", zeros, (experts.count,), self.param_dtype)
            logits_BxTxE = logits_BxTxE + bias_E.astype(logits_BxTxE.dtype)[None, None]
        share_BxTxE = jax.nn.softmax(logits_BxTxE.astype(jnp.float32), axis=-1)
        weight_BxTxR, chosen_BxTxR = jax.lax.top_k(share_BxTxE, experts.used)
        if experts.normalised:
            weight_BxTxR = weight_BxTxR / weight_BxTxR.sum(-1, keepdims=True)
        if experts.shared:
            more = (*x_BxTxD.shape[:2], experts.shared)
            after = jnp.broadcast_to(jnp.arange(experts.count, experts.total)[None, None], more)
            gate = self.param("shared_gate", INIT, (x_BxTxD.shape[-1], 1), self.param_dtype)
            logit_BxTx1 = matrix_product(x_BxTxD, gate.astype(x_BxTxD.dtype))
            share_BxTx1 = jax.nn.sigmoid(logit_BxTx1.astype(jnp.float32))
            chosen_BxTxR = jnp.concatenate([chosen_BxTxR, after.astype(chosen_BxTxR.dtype)], -1)
            weight_BxTxR = jnp.concatenate([weight_BxTxR, jnp.broadcast_to(share_BxTx1, more)], -1)
        return chosen_BxTxR, weight_BxTxR.astype(self.dtype)


def by_channel(
    values_BxTxRxF: jax.Array, chosen_BxTxR: jax.Array, experts: int, how: str
) -> jax.Array:
    """(B, E·F): largest ("max") or sum ("add") over the tokens that go through an expert, of what is not negative; 0 where none does."""
    B, T, R, F = values_BxTxRxF.shape

    def of_sequence(rows_TRxF, chosen_TR):
        into = jnp.zeros((experts, F), values_BxTxRxF.dtype).at[chosen_TR]
        return (into.max if how == "max" else into.add)(rows_TRxF).reshape(-1)

    return jax.vmap(of_sequence)(
        values_BxTxRxF.reshape(B, T * R, F),
        chosen_BxTxR.reshape(B, T * R),
    )
