"""Linear layers of the models and how they are initialised."""

from __future__ import annotations

import jax
from flax import linen as nn

#: nanoGPT's initialisation; see `residual_init` for what writes into the residual stream.
INIT = nn.initializers.normal(0.02)


def residual_init(num_layers: int):
    """For o_proj and down_proj: smaller by the root of the 2L updates that add up in the residual stream (Radford et al. 2019)."""
    return nn.initializers.normal(0.02 / (2 * num_layers) ** 0.5)


def dense(module: nn.Module, features: int, name: str | None, bias: bool, init=INIT) -> nn.Dense:
    """A linear layer in the dtypes of `module`; in `setup` the attribute names it."""
    return nn.Dense(
        features,
        bias,
        module.dtype,
        module.param_dtype,
        kernel_init=init,
        dot_general=matrix_product,
        name=name,
    )


class FusedDense(nn.Dense):
    """Several linear layers of one input as one product: (…, D) to (…, parts, F) with `features` = parts · F.

    The kernel is (D, parts · F), or lies as (D, parts, F) on a mesh that cuts every part (`sysout_jax.sharding.lay`); the bias alike.
    """

    parts: int = 3

    @nn.compact
    def __call__(self, x):
        apart = (self.parts, self.features // self.parts)
        held: jax.Array | None = self.get_variable("params", "kernel")
        outputs = apart if held is not None and held.ndim == 3 else (self.features,)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], *outputs), self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, outputs, self.param_dtype)
        x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = matrix_product(x, kernel)
        if bias is not None:
            y += bias.reshape(*(1,) * (x.ndim - 1), *outputs)
        return y.reshape(*x.shape[:-1], *apart)


def fused_dense(module: nn.Module, parts: int, features: int, name: str, bias: bool) -> FusedDense:
    """`parts` linear layers of `features` outputs each in one, in the dtypes of `module`."""
    dtypes = (module.dtype, module.param_dtype)
    return FusedDense(parts * features, bias, *dtypes, kernel_init=INIT, parts=parts, name=name)


def matrix_product(x, kernel, dimension_numbers=None, precision=None, **kwargs):
    # All tokens as rows of one matrix: XLA's CPU backend is several times slower on the gradients of a product with batch dims.
    del dimension_numbers  # Dense always contracts the last dim of x with the first of the kernel
    rows = x.reshape(-1, x.shape[-1])
    y = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), precision, **kwargs)
    return y.reshape(*x.shape[:-1], *kernel.shape[1:])
