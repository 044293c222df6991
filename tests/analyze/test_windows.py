"""Which windows the flags ask for: with equal flags every analysis reads the same text under the same protocol."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import sysout_jax as so
from analyze.analysis import Shared
from analyze.commands import COMMANDS
from analyze.source import Prepared, Source, prepare
from sysout_jax.data.prepare_task import prepare_task, source_bigrams
from sysout_jax.data.tasks import bigram_backcopy
from sysout_jax.perplexity import perplexity

READING = [name for name in COMMANDS if name not in ("compare", "absorb")]


def read(name: str, **flags) -> Prepared:
    args = importlib.import_module(f"analyze.{name}").Args(**flags)
    assert isinstance(args, Source)
    return prepare(args)


@pytest.mark.parametrize("join_rows", (False, True))
def test_one_protocol_in_every_command(tmp_path, join_rows):
    text = tmp_path / "rows.txt"
    text.write_text("\n".join(f"Row {i} of a text that has some." for i in range(40)))
    flags = {"ckpt": "planted", "text": text, "num_seqs": 3, "seq_len": 32, "join_rows": join_rows}
    found = {name: read(name, **flags) for name in READING}
    first = found["lifecycle"]
    assert all(np.array_equal(each.tokens, first.tokens) for each in found.values())
    protocols = {perplexity(each.lm, each.windows).protocol for each in found.values()}
    assert len(protocols) == 1 and (protocols.pop().joined_by == "\n\n") == join_rows
    as_it_is = read("lifecycle", **(flags | {"join_rows": False}))
    assert np.array_equal(first.tokens, as_it_is.tokens) != join_rows


def test_a_lifecycle_says_how_its_windows_were_made(tmp_path):
    """Whatever they were made of; it once told all alike."""
    (tmp_path / "rows.txt").write_text("A row of a text.\n" * 40)
    task, sizes = bigram_backcopy(source_bigrams(()), "te "), {"length": 8, "windows": 40}
    prepare_task(task, {}, tmp_path / "data", val_windows=4, **sizes)
    text = {"text": tmp_path / "rows.txt", "seq_len": 8}
    for flags, bos, joined_by in (
        ({**text, "bos": True}, True, None),
        ({**text, "join_rows": True}, False, "\n\n"),
        ({"data": tmp_path / "data"}, True, None),
        (text, False, None),
    ):
        found = read("lifecycle", ckpt="planted", num_seqs=2, **flags)
        protocol = Shared(found.lm, found, 1000.0, 0).lifecycle.protocol
        assert (protocol.bos, protocol.joined_by) == (bos, joined_by), flags


def test_rows_of_no_text_cannot_be_joined():
    for given in ({}, {"prompt": "a\nb"}):
        with pytest.raises(so.InputError, match="--join-rows: joins the lines of a --text"):
            prepare(Source(ckpt="planted", join_rows=True, **given))


def test_counts_of_one_are_singular():
    lm = prepare(Source(ckpt="planted", num_seqs=1, seq_len=8)).lm
    protocol = perplexity(lm, np.arange(8)[None]).protocol
    assert protocol.sentence().startswith("1 window of 8 tokens, ")


@pytest.mark.parametrize("flags, said", [
    ({}, False), ({"num_seqs": 50}, True), ({"seq_len": 64}, True), ({"seq_len": 8}, False),
])  # fmt: skip
@pytest.mark.parametrize("name", ["lifecycle", "absorb"])
def test_that_a_text_is_short_is_said_where_somebody_asked_for_more(name, flags, said, tmp_path):
    (tmp_path / "text.txt").write_text("Summer is warm. Winter is cold.")
    notes = read(name, ckpt="planted", text=tmp_path / "text.txt", **flags).notes
    assert any("fills only" in note or "text is short" in note for note in notes) == said
