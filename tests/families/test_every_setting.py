"""Every field of every family's config.json is computed with, refused, or one by which nothing is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.errors import InputError
from sysout_jax.families.fields import HARMLESS
from tests.families.cases import CASES

#: kind, or name of a case → fields that are passed over, and why nothing is computed with them.
_NO_WINDOW = "counts with use_sliding_window and in the layers that layer_types names"
_NO_DENSE = "every layer has experts"
_OLD = "a head has a key of its own, or there is one: num_kv_heads counts in the new layout"
_NEW = "the new layout is parallel and says its number of keys"
PASSED_OVER: dict[str, dict[str, str]] = {
    "qwen2": {"sliding_window": _NO_WINDOW, "use_sliding_window": _NO_WINDOW},
    "qwen3": {"sliding_window": _NO_WINDOW, "use_sliding_window": _NO_WINDOW},
    "qwen2-dynamic": {"factor": "changes nothing within the context"},
    "qwen2_moe": {"sliding_window": _NO_WINDOW, "intermediate_size": _NO_DENSE},
    "qwen3_moe": {"sliding_window": _NO_WINDOW, "use_sliding_window": _NO_WINDOW, "intermediate_size": _NO_DENSE},
    "gemma3_text": {"_sliding_window_pattern": "layer_types stand beside it"},
    "mpt": {"attn_impl": "a kernel", "learned_pos_emb": "transformers has ALiBi alone"},
    "falcon": {"num_kv_heads": _OLD, "multi_query": _NEW, "parallel_attn": _NEW},
    "phi3": {
        "original_max_position_embeddings": "of longrope, and that in rope_parameters counts",
        "partial_rotary_factor": "that in rope_parameters counts",
        "type": "an older name of rope_type, which counts",
    },
}  # fmt: skip


def others(value: Any) -> list[Any]:
    """Values of the same kind that would change what is computed with it; of what is null, one of each kind."""
    if value is None:
        return [True, 3, 0.5, "odd"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 2]
    if isinstance(value, float):
        return [1.5 * value + 0.25]
    if isinstance(value, str):
        return [f"{value} odd"]
    if isinstance(value, list):
        return [[*reversed(value), value[0]]] if value else [["odd"]]
    return [value | {"odd": 1}]


def harmless(name: str) -> bool:
    # classes are looked at in test_config_in_the_wild
    known = HARMLESS | {"_name_or_path", "architectures"}
    return name in known or name.endswith(("_token_id", "_token_ids"))


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_every_field(name):
    """Fields as transformers writes them, the default ones included; those inside an object one by one."""
    transformers = pytest.importorskip("transformers")
    kind, settings = CASES[name]
    fields = transformers.AutoConfig.for_model(kind, **copy.deepcopy(settings)).to_dict()
    base = read_config(fields, name).config
    allowed = {*PASSED_OVER.get(kind, {}), *PASSED_OVER.get(name, {})}

    def changes(inside: dict, replaced) -> set[str]:
        """Those of the fields in `inside` that change nothing and are not refused."""
        silent = set()
        for key, value in inside.items():
            if harmless(key):
                continue
            for other in others(value):
                try:
                    same = read_config(replaced(inside | {key: other}), name).config == base
                except InputError:
                    continue
                if same:
                    silent.add(f"{key}={other!r} (was {value!r})")
        return silent

    silent = changes(fields, lambda whole: whole)
    for key, value in fields.items():
        if isinstance(value, dict) and not harmless(key):
            silent |= changes(value, lambda whole, key=key: fields | {key: whole})
    silent = {text for text in silent if text.partition("=")[0] not in allowed}
    assert not silent, "\n".join(sorted(silent))
