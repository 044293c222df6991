"""Model families: one file each, and one line here."""

from __future__ import annotations

from typing import Any

from sysout_jax.checks import Word, check, shown
from sysout_jax.config import ModelConfig, built
from sysout_jax.errors import InputError
from sysout_jax.families import (
    baichuan,
    cohere,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    internlm2,
    llama,
    minicpm,
    mixtral,
    mpt,
    olmo,
    olmo2,
    olmo3,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    stablelm,
    starcoder2,
)
from sysout_jax.families.family import Export, Family, Gguf, Layout
from sysout_jax.rope_scaling import RopeScaling

#: `config.family` → the family.
FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "gpt2": gpt2.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "phi": phi.FAMILY,
    "opt": opt.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "mpt": mpt.FAMILY,
    "falcon": falcon.FAMILY,
    "olmo": olmo.FAMILY,
    "olmo2": olmo2.FAMILY,
    "gemma": gemma.FAMILY,
    "gemma2": gemma2.FAMILY,
    "phi3": phi3.FAMILY,
    "stablelm": stablelm.FAMILY,
    "starcoder2": starcoder2.FAMILY,
    "mixtral": mixtral.FAMILY,
    "qwen2_moe": qwen2_moe.FAMILY,
    "qwen3_moe": qwen3_moe.FAMILY,
    "gemma3": gemma3.FAMILY,
    "olmo3": olmo3.FAMILY,
    "gptj": gptj.FAMILY,
    "cohere": cohere.FAMILY,
    "gpt_oss": gpt_oss.FAMILY,
    "internlm2": internlm2.FAMILY,
    "minicpm": minicpm.FAMILY,
    "baichuan": baichuan.FAMILY,
}
#: `model_type` of a config.json → its layout.
LAYOUTS: dict[str, Layout] = {
    name: layout for family in FAMILIES.values() for name, layout in family.layouts.items()
}
#: `general.architecture` of a GGUF file → the families that it may hold, and their layouts. The last one counts whose `when` says so.
ARCHITECTURES: dict[str, dict[str, Gguf]] = {}
for _name, _family in FAMILIES.items():
    for _architecture, _gguf in _family.gguf.items():
        ARCHITECTURES.setdefault(_architecture, {})[_name] = _gguf

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "LAYOUTS",
    "Export",
    "Family",
    "Gguf",
    "Layout",
    "config_from_dict",
]


def config_from_dict(fields: Any) -> ModelConfig:
    """Rebuild a config written by `config_to_dict`, whoever wrote what is given now.

    Raises InputError when the family is unknown or a field is missing, unexpected or impossible.
    """
    if not isinstance(fields, dict):
        raise InputError(f"config is {shown(fields)}; expected an object")
    family = check("config field family", fields.get("family"), Word(tuple(FAMILIES)))
    scaling = fields.get("rope_scaling")
    if scaling is not None:
        scaling = built(RopeScaling, scaling, "config field rope_scaling")
        fields = fields | {"rope_scaling": scaling}
    return built(FAMILIES[family].Config, fields, f"config of family {family}")
