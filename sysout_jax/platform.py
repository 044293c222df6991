"""The platform that functions are compiled for: the one jax runs on or, for ahead-of-time plans, one that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str | None] = ContextVar("target_platform", default=None)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: what `compiling_for` says, else of the mesh set by `jax.set_mesh`, else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return _target.get() or (jax.default_backend() if device is None else device.platform)


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within, choices that depend on the platform are made for `platform`."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
