"""One optimiser step and one evaluation, as jitted functions over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sysout_jax.config import ModelConfig
from sysout_jax.models import build, parameter_shapes
from sysout_jax.sharding import BATCH_AXES, check_divisible, lay, parameter_specs, place
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.forward import before_head, final_hidden
from sysout_jax.training.loss import next_token_loss
from sysout_jax.training.optimizer import make_optimizer, optimizer_specs, schedule

#: State of a run: `params`, `optimizer` (its moments) and `step`, the number of steps taken.
State = dict[str, Any]
WATCHED = ("k", "v", "down")  # projections whose gradient norms the monitor reports, per layer


@dataclass(frozen=True)
class Program:
    """Everything that runs on devices in a training run.

    `train(state, batch (A, B, T+1)) -> (state, metrics)` donates the state; `evaluate(params, batch (B, T+1), masked) -> mean nll`, with
    `masked` over those rows of the batch that do not hold -1 throughout.
    """

    init: Callable[[jax.Array], State]
    train: Callable[[State, jax.Array], tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[[dict, jax.Array, bool], jax.Array]
    shapes: State  # jax.ShapeDtypeStruct with shardings
    stored: State  # the same as checkpoints hold it, see `sysout_jax.sharding.lay`; `relaid` goes from one to the other
    batch_sharding: Any
    eval_sharding: Any
    model: Any


def make_program(config: TrainConfig, mesh: Mesh) -> Program:
    """Compile-ready functions of a run on a mesh. Raises InputError when batch or model do not divide as the mesh asks."""
    check_divisible(config.model, config.batch_size // config.accumulate, mesh)
    model = build(config.model, config.dtype, "float32", config.kernel)
    optimizer = make_optimizer(config.optimizer)
    stored = parameter_shapes(config.model)
    shardings = _state_shardings(optimizer, lay(stored, mesh), mesh)
    eval_sharding = place(P(BATCH_AXES), mesh)
    batch_sharding = place(P(None, BATCH_AXES), mesh)

    def init(key: jax.Array) -> State:
        params = model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
        return begin(lay(params, mesh))

    def begin(params: dict) -> State:
        step = jnp.zeros((), jnp.int32)
        return {"params": params, "optimizer": optimizer.init(params), "step": step}

    def loss_of(params: dict, tokens_BxT1, masked: bool = False) -> tuple[jax.Array, jax.Array]:
        inputs_BxT = tokens_BxT1[:, :-1]
        if masked:
            inputs_BxT = jnp.maximum(inputs_BxT, 0)
        hidden = final_hidden(model, params, inputs_BxT, config.remat)
        nll, loss = next_token_loss(
            *before_head(model, params, hidden),
            tokens_BxT1[:, 1:],
            config.loss_chunk,
            config.z_loss,
            masked,
            config.model.ends().softcap,
        )
        return loss, nll

    def train(state: State, batch_AxBxT1):
        gradient = jax.grad(loss_of, has_aux=True)
        params = state["params"]
        if config.accumulate == 1:
            grads, nll = gradient(params, batch_AxBxT1[0])
        else:

            def add(total, tokens):
                return jax.tree.map(jnp.add, total, gradient(params, tokens)), None

            zero = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.float32))
            total, _ = jax.lax.scan(add, zero, batch_AxBxT1)
            grads, nll = jax.tree.map(lambda g: g / config.accumulate, total)
        updates, moments = optimizer.update(grads, state["optimizer"], params)
        metrics = {
            "loss": nll,
            "grad_norm": optax.global_norm(grads),
            "lr": schedule(config.optimizer)(state["step"]),
            "grad_norms": watched_norms(grads, config.model),
        }
        new = {
            "params": optax.apply_updates(params, updates),
            "optimizer": moments,
            "step": state["step"] + 1,
        }
        return new, metrics

    def evaluate(params: dict, tokens_BxT1, masked: bool) -> jax.Array:
        return loss_of(params, tokens_BxT1, masked)[1]

    def shaped(params: dict, shardings: dict) -> State:
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(begin, params),
            shardings,
        )

    return Program(
        init=jax.jit(init, out_shardings=shardings),
        train=jax.jit(
            train,
            in_shardings=(shardings, batch_sharding),
            out_shardings=(shardings, place(P(), mesh)),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            evaluate, in_shardings=(shardings["params"], eval_sharding), static_argnums=2
        ),
        shapes=shaped(lay(stored, mesh), shardings),
        stored=shaped(stored, _state_shardings(optimizer, stored, mesh)),
        batch_sharding=batch_sharding,
        eval_sharding=eval_sharding,
        model=model,
    )


def _state_shardings(optimizer: optax.GradientTransformation, shapes: dict, mesh: Mesh) -> dict:
    specs = parameter_specs(shapes, mesh)
    moments = optimizer_specs(optimizer, shapes, specs)
    return place({"params": specs, "optimizer": moments, "step": P()}, mesh)


def watched_norms(grads: dict, model: ModelConfig) -> dict[str, jax.Array]:
    """(L,) gradient norm of W_K, W_V and W_down of every layer."""

    def norm(layer: int, name: str) -> jax.Array:
        gradient = model.layer(layer).matrix(name).of(grads[f"layer_{layer}"])
        return jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32))))

    layers = range(model.num_layers)
    return {name: jnp.stack([norm(layer, name) for layer in layers]) for name in WATCHED}
