"""Windows of prepared data are used as they are: neither cut again nor mixed with another text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import analyze.absorb
import analyze.compression
from analyze.source import Prepared
from sysout_jax.data.text import Windows


def prepared(length: int, bos: bool) -> Prepared:
    lm: Any = SimpleNamespace(config=SimpleNamespace(context_length=4096), tokenizer=None)
    return Prepared(lm, Windows(np.arange(3 * length).reshape(3, length), bos), [])


def test_scales_are_not_calibrated_on_another_text():
    lm = SimpleNamespace(tokenizer=object())  # which would be asked for the tokens of a text
    read = dataclasses.replace(prepared(8, True), lm=lm)
    args = analyze.compression.Args(ckpt="x", data=Path("data"))
    assert analyze.compression._calibration(args, read) is None


def test_windows_that_begin_with_bos_are_not_cut_in_two():
    args = analyze.absorb.Args(ckpt="x", data=Path("data"))
    for bos, length in ((True, 512), (False, 512)):
        found, calibration = analyze.absorb._divided(args, prepared(1024, bos), 4)
        assert found.tokens.shape[1] == calibration.shape[1] == length
        starts = found.tokens[:, 0] % 1024 == 0
        assert starts.all() == bos
