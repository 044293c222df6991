"""What a family of models is, as a value. A new family is one file here and one line in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sysout_jax.config import ModelConfig
from sysout_jax.families.fields import Fields
from sysout_jax.families.forms import Stored

if TYPE_CHECKING:
    from sysout_jax.containers.gguf_file import GgufFile


@dataclass(frozen=True)
class Layout:
    """How one kind of Hugging Face directory stores a family."""

    read: Callable[[Fields], ModelConfig]
    """Our config from a config.json, every field of which it computes with must be taken."""
    names: Mapping[str, Stored]
    """Our parameter paths, with `{l}` for the layer, ← their tensors."""
    base_prefix: str
    """What the names of a model saved without its language-model class lack."""
    classes: tuple[str, ...] = ()
    """Names in `architectures` by which a file without a `model_type` says that it is one."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a `text_config` inside another model's file leaves out: the defaults of transformers."""


@dataclass(frozen=True)
class Gguf:
    """How GGUF files of one architecture store a family."""

    read: Callable[[GgufFile, Fields], ModelConfig]
    """Our config from the keys in the architecture's namespace, all of which must be taken, and from which tensors there are."""
    names: Mapping[str, Stored]
    """Our parameter paths ← their tensors."""
    when: Callable[[Fields], bool] = lambda fields: True
    """Whether a file of that architecture is of this family rather than of one listed before it."""


@dataclass(frozen=True)
class Export:
    """How a family is written for transformers, where its layout allows it."""

    fields: Callable[[Any], dict[str, Any]]
    """config.json of a config."""
    whole: Callable[[Any], Any] = lambda config: config
    """The same model with all biases that transformers' class insists on; those that we lack are zero."""
    otherwise: Callable[[Any], bool] = lambda config: False
    """Whether its tensors have their other names, `Stored.otherwise`."""


@dataclass(frozen=True)
class Family:
    """Config, and layouts by `model_type`. What a layer is made of says the config itself, `config.layer(l)`."""

    Config: type[ModelConfig]
    layouts: Mapping[str, Layout]
    export: Export | None = None
    gguf: Mapping[str, Gguf] = field(default_factory=dict)
    """By `general.architecture`."""
