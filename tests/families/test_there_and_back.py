"""Every family from transformers to ours and back: the same tensors, byte by byte, and the same logits in transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.checkpoints.formats.hf_export import check_exportable, save_hugging_face
from sysout_jax.families import FAMILIES
from tests.convert.gguf_writer import hf_tensors
from tests.families.cases import CASES, random_tokens, save, transformers_model
from tests.families.test_families import FIRST, config_of
from tests.parameters import mostly_endurance


def export(lm: so.LanguageModel, out: Path) -> Path:
    save_hugging_face(out, lm.config, lm.source, "float32")
    return out


#: Their rotary positions have a setting that the class which the export names does not read.
UNSAID = ("ministral3",)
#: Their class knows one base of the rotary positions.
FIXED_BASE = ("gptj",)


@pytest.mark.parametrize("name", CASES)
def test_every_case_can_be_said(name):
    family = FAMILIES[config_of(name).family]
    if name in UNSAID:
        with pytest.raises(so.InputError, match="rope_scaling .* cannot be said in a config.json"):
            check_exportable(config_of(name))
    elif family.export is None:
        with pytest.raises(
            so.InputError, match="not written for transformers; write it as an Orbax directory"
        ):
            check_exportable(config_of(name))
    else:
        assert check_exportable(config_of(name)) is family.export


@pytest.mark.parametrize(
    ("name", "changes"), [("mpt", {"alibi_max": 16.0}), ("opt", {"norm_eps": 1e-3})]
)
def test_what_transformers_computes_otherwise_is_refused(name, changes):
    config = dataclasses.replace(config_of(name), **changes)
    with pytest.raises(so.InputError, match="transformers.*; write it as an Orbax directory"):
        check_exportable(config)


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_endurance(CASES, usual=FIRST))
def test_there_and_back(name, tmp_path):
    """With another base of the rotary positions where there are some, so that a setting without a reader in transformers shows."""
    transformers = pytest.importorskip("transformers")
    import torch

    if name in UNSAID or FAMILIES[config_of(name).family].export is None:
        pytest.skip(
            f"{config_of(name).family} , as {name} says it, is not written for transformers"
        )
    src = save(transformers_model(CASES[name], 0), tmp_path / "src")
    there = so.load(src)
    back = so.load(export(there, tmp_path / "back"))
    assert there.config == back.config
    held, written = hf_tensors(src), hf_tensors(tmp_path / "back")
    assert held.keys() == written.keys()
    for tensor in held:
        assert held[tensor].tobytes() == written[tensor].tobytes(), tensor

    if hasattr(there.config, "rope_theta") and there.config.family not in FIXED_BASE:
        there.config = dataclasses.replace(there.config, rope_theta=50.0)
    out = export(there, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, experts_implementation="eager", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = random_tokens(0)
    with torch.no_grad():
        want = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
    scale = np.abs(want).max()
    np.testing.assert_allclose(so.capture(there, tokens, ())[0], want, atol=1e-4 * max(1, scale))
    assert scale > 0.1
