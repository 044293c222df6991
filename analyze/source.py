"""The flags that all analyses share: which model, which text, which threshold, where to write."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import sysout_jax as so
from analyze.limits import LEAST_TAU, MOST, MOST_TAU, check_count, flag_text, short
from sysout_jax.commands import compilations
from sysout_jax.commands.cli import say
from sysout_jax.config import ModelConfig, config_to_dict
from sysout_jax.data.batches import validation_slice
from sysout_jax.data.demo import demo_text
from sysout_jax.data.demo_checkpoint import NAME as DEMO_NAME
from sysout_jax.data.demo_checkpoint import ORIGIN, demo_checkpoint
from sysout_jax.data.demo_checkpoint import SHORT_NAME as DEMO
from sysout_jax.data.text import Windows, prompt_sequence, read_text, text_windows
from sysout_jax.data.token_files import read_meta
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.families.fields import naming
from sysout_jax.language_model import DTypeName
from sysout_jax.outliers.definitions import TAU
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.perplexity import ROWS_JOINED_BY, joined_rows
from sysout_jax.printable import escaped, printable_name
from sysout_jax.processes import start_processes
from sysout_jax.provenance import run_settings
from sysout_jax.published.expected import Expected
from sysout_jax.published.values import published
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.terminal import fit
from sysout_jax.sharding import MeshConfig, make_mesh
from sysout_jax.statistics.export import files as exported_files
from sysout_jax.testing import demo_model
from sysout_jax.words import plural

#: A model that needs no path, as DEMO.
PLANTED = "planted"


@dataclass(frozen=True)
class Source:
    """Flags that every analysis takes."""

    NAME: ClassVar[str]  # of the analysis, and of its JSON
    NUM_SEQS: ClassVar[int] = 10  # windows where nothing is said
    LENGTH: ClassVar[int] = 1024  # tokens per window
    LEAST: ClassVar[int] = 1  # tokens that a window must have

    ckpt: str | None = None
    """Hugging Face directory or hub id, GGUF file, nanoGPT ckpt.pt, llama2.c .bin, or a directory written by
    python -m sysout_jax.convert or python -m train. Some have names: demo (the default), a pretrained SmolLM2 of 98 MB that is
    fetched once; planted, a small model whose outliers are known by construction; backcopy-default, backcopy-gate and
    backcopy-context_scale, tiny models that we trained (docs/section5.md)."""
    text: Path | None = None
    """Text file to analyse in non-overlapping windows. Default: a short text that comes with the package."""
    prompt: str | None = None
    """Analyse this one prompt instead of a text."""
    data: Path | None = None
    """Directory of python -m train.prepare: analyse windows of its val.bin, cut as training cuts them, in place of a text."""
    join_rows: bool = False
    """Put a blank line between the lines of a text file, as published perplexities of WikiText-2 do. Default: a text is read as it is."""
    num_seqs: int | None = None
    """Windows to analyse (default 10, for analyze.compression 2)."""
    seq_len: int | None = None
    """Tokens per window, BOS included (default 1024, for analyze.consistency 2048, for analyze.compression 512, or the model's context where that is shorter)."""
    tau: float = TAU
    """Outlier threshold: |x| > tau * mean|x| of the sequence."""
    bos: bool = False
    """Start every sequence with the model's BOS token. The paper's figures have none."""
    dtype: DTypeName = "float32"
    """Of weights and compute."""
    batch_size: int | None = None
    """Sequences per step (default 4096 tokens worth). Changes no result."""
    seed: int = 0
    """Draws random controls and resamples."""
    accept_setting: tuple[str, ...] = ()
    """Settings of the model's config that are unknown here and that you know to change nothing; the report records them."""
    export: Literal["npz", "csv"] | None = None
    """Also write the statistics of all layers as statistics.npz or statistics.csv, and mask.json: outlier tokens by rule, and dims."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))
    """Where there are several devices: how they share weights and sequences. Changes results by rounding only."""

    def text_of(self, path: Path) -> str:
        """The text of a file."""
        return joined_rows(read_text(path)) if self.join_rows else read_text(path)

    def places_read(self) -> list[str | Path | None]:
        """Where the flags say that something lies to be read; `check_out` keeps reports away from it."""
        return [self.ckpt, self.data]

    def files(self) -> list[str]:
        """What it writes beside the page: its JSON, then all else but figures."""
        return [f"{self.NAME}.json", *(exported_files(self.export) if self.export else ())]

    @property
    def windows(self) -> int:
        """How many windows it wants of a text."""
        return self.num_seqs or self.NUM_SEQS

    @property
    def joined_by(self) -> str | None:
        """What stands between the rows of the text that is analysed."""
        return ROWS_JOINED_BY if self.join_rows else None


@dataclass(frozen=True)
class Expects:
    """The flag of analyses that can be held against published values."""

    expect: str | None = None
    """Check the report against the published values of this model, for example llama-2-7b; an unknown name lists all.
    Differences are printed and stored, the exit status stays 0."""

    def expected(self) -> tuple[Expected, ...]:
        """What is expected, before anything is computed; InputError for an unknown name."""
        if self.expect is None:
            return ()
        try:
            return published(self.expect)
        except so.InputError as error:
            raise so.InputError(f"--expect {error}") from None

    def held_against(self, measured: Mapping[str, Any]) -> Expectation | None:
        """The report held against it."""
        return None if self.expect is None else Expectation(self.expect, self.expected(), measured)


@dataclass(frozen=True)
class Prepared:
    """A model and what it will read."""

    lm: so.LanguageModel
    windows: Windows
    notes: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> np.ndarray:
        """(N, T)"""
        return self.windows.tokens

    def token_text(self, sequence: int, position: int) -> str:
        """The token as a reader should see it."""
        token = int(self.tokens[sequence, position])
        return self.lm.tokenizer.token(token) if self.lm.tokenizer else f"[{token}]"


def prepare(source: Source) -> Prepared:
    """Load the model and cut the text. Raises InputError for everything that cannot work."""
    _check(source)
    start_processes()
    if jax.process_index() > 0:
        # all processes compute the same, the first one tells
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    mesh = make_mesh(source.mesh.data, source.mesh.fsdp, source.mesh.tensor)
    text = source.text_of(source.text) if source.text is not None else None
    compilations.keep()
    lm, notes = _open(source, mesh if mesh.size > 1 else None)
    if lm.tokenizer is None:
        raise so.InputError(
            f"{source.ckpt}: has no tokenizer (tokenizer.json, vocab.json with merges.txt, or tokenizer.model), so no text can be read; "
            "put the model's tokenizer.json beside its config or file"
        )
    if source.data is None:
        check_bos(source.bos, lm.tokenizer)
        notes += _bos_note(lm.tokenizer, source.bos)
    if source.data is not None:
        tokens, bos = _data_windows(source, source.data, lm.config)
        windows = Windows(lm.check_tokens(tokens), bos)
    elif source.prompt is not None:
        prompt = flag_text("--prompt", source.prompt)
        with naming("--prompt"):
            tokens = lm.check_tokens(prompt_sequence(lm.tokenizer, prompt, source.bos))
        windows = Windows(tokens, source.bos)
    else:
        if text is None:
            text = demo_text()
            notes.append(
                "No --text and no --prompt given: the text is the one that comes with the package."
            )
        windows, short = cut(source, lm, text)
        notes += short
    if windows.tokens.shape[1] < source.LEAST:
        raise so.InputError(
            f"{'--seq-len 1' if source.prompt is None else '--prompt'}: windows of one token predict nothing; "
            f"expected at least {source.LEAST} tokens each"
        )
    return Prepared(lm.with_passes(batch_size=source.batch_size), windows, notes)


def check_bos(bos: bool, tokenizer: Tokenizer) -> None:
    """InputError where windows are to begin with BOS and the model has none."""
    if bos and tokenizer.bos_id is None:
        raise so.InputError(
            "--bos: the model's config names no bos_token_id of its vocabulary; leave it out"
        )


def cut(source: Source, lm: so.LanguageModel, text: str) -> tuple[Windows, list[str]]:
    """The windows of a text that the flags ask for, and what to say where it does not fill those. InputError beyond the model's context."""
    wanted = source.windows
    length = source.seq_len or min(source.LENGTH, lm.config.context_length)
    if length > lm.config.context_length:
        raise so.InputError(
            f"--seq-len {length}: the model's context is {lm.config.context_length} tokens; ask for at most that"
        )
    if length < 1 + source.bos:
        raise so.InputError(f"--seq-len {length}: holds BOS and no text; ask for at least 2")
    assert lm.tokenizer is not None
    with naming("the text" if source.text is None else f"--text {source.text}"):
        tokens = text_windows(lm.tokenizer, text, wanted, length, source.bos)
    notes = []
    fewer, shorter = len(tokens) < wanted, tokens.shape[1] < length
    if (source.num_seqs and fewer) or (source.seq_len and shorter):  # than somebody asked for
        asked = f", not of {length:,}" if source.seq_len and shorter else ""
        notes.append(
            f"The text fills only {len(tokens)} of {plural(wanted, 'window')}, of {plural(tokens.shape[1], 'token')} each{asked}."
            if fewer
            else f"The text is short: {plural(len(tokens), 'window')} of {plural(tokens.shape[1], 'token')}{asked}."
        )
    return Windows(lm.check_tokens(tokens), source.bos, source.joined_by), notes


def _data_windows(source: Source, directory: Path, config: ModelConfig) -> tuple[np.ndarray, bool]:
    """Windows of val.bin (N, T), and whether they begin with BOS."""
    meta = read_meta(directory)
    cut = meta.windows if meta else None
    length = source.seq_len or (cut.length if cut else min(source.LENGTH, config.context_length))
    rows = validation_slice(directory, length, source.windows, config.vocab_size)
    return rows[:, :-1], cut is not None and cut.bos_id is not None


def _open(source: Source, mesh: Mesh | None) -> tuple[so.LanguageModel, list[str]]:
    """The model, and what to say about it. A file or directory called like one of our own models is meant before it."""
    ckpt = DEMO if source.ckpt is None else source.ckpt
    ours = ckpt if ckpt in (DEMO, PLANTED) and not os.path.lexists(ckpt) else None
    notes = []
    if ours == DEMO:
        try:
            ckpt = str(demo_checkpoint(lambda line: say(fit(line))))
            notes.append(f"The model is {ORIGIN}.")
        except so.InputError as error:
            notes.append(f"No real model to show: {error}.")
            ours = PLANTED
    if ours == PLANTED:
        lm = demo_model()
        lm.mesh = mesh
        notes.append("This is a small planted model whose outliers are known by construction.")
        return lm, notes
    lm = so.load(ckpt, source.dtype, mesh, accept=source.accept_setting)
    if ours == DEMO:
        lm.name = DEMO_NAME
    notes += lm.notes
    if lm.accepted:
        names = ", ".join(map(printable_name, lm.accepted))
        notes.append(f"Not computed with, accepted as changing nothing: {names}.")
    return lm, notes


def _bos_note(tokenizer: Tokenizer, bos: bool) -> list[str]:
    """What the model's own tokenizer does, where the run does something else."""
    if tokenizer.bos_id is None or tokenizer.adds_bos == bos:
        return []
    return [
        f"Read {'with' if bos else 'without'} BOS; the model's own tokenizer starts a text "
        f"{'with' if tokenizer.adds_bos else 'without'} it ({tokenizer.token(tokenizer.bos_id)}, id {tokenizer.bos_id})."
    ]


def _check(source: Source) -> None:
    """InputError for flags that cannot work, before a device is touched."""
    if not LEAST_TAU <= source.tau <= MOST_TAU:  # NaN is neither
        raise so.InputError(
            f"--tau {source.tau:g}: expected a positive threshold from {LEAST_TAU:g} to {MOST_TAU:g}, for example 1000"
        )
    check_count("--num-seqs", source.num_seqs, MOST)
    check_count("--seq-len", source.seq_len, MOST)
    check_count("--batch-size", source.batch_size, MOST)
    if not 0 <= source.seed <= MOST:
        raise so.InputError(f"--seed {short(source.seed)}: expected a number from 0 to {MOST}")
    given = [
        f"--{name}" for name in ("text", "prompt", "data") if getattr(source, name) is not None
    ]
    if len(given) > 1 and "--data" in given:
        raise so.InputError(f"{' and '.join(given)} exclude each other; give one of them")
    if source.data is not None and source.bos:
        raise so.InputError("--bos: the windows of --data are as they are; leave it out")
    if source.join_rows and source.text is None:
        raise so.InputError("--join-rows: joins the lines of a --text; name one, or leave it out")
    if source.text is not None and source.prompt is not None:
        raise so.InputError("--text and --prompt exclude each other; give one of them")
    if source.prompt is not None and (source.num_seqs or source.seq_len):
        raise so.InputError(
            "--num-seqs and --seq-len cut a --text into windows; a --prompt is one sequence"
        )


@contextlib.contextmanager
def progress(lm: so.LanguageModel, passes: int | None = None) -> Iterator[so.LanguageModel]:
    """The model, whose passes move a bar over layers on a terminal; nothing is shown in a pipe."""
    with terminal_bar(None if passes is None else passes * lm.num_layers) as bar:

        def plan(layers: int) -> None:
            bar.total = bar.n + layers
            bar.refresh()

        yield lm.with_passes(on_layer=bar.update, on_plan=plan)


def terminal_bar(layers: int | None = None, **more: Any) -> tqdm:
    """A bar over layers of passes on a terminal; nothing is shown in a pipe."""
    hidden = not sys.stderr.isatty() or jax.process_index() > 0
    return tqdm(total=layers, unit="layer", disable=hidden, leave=False, **more)


def tell(
    summary: str,
    write: Callable[[], list[Path]],
    out: Path,
    expectation: Expectation | None = None,
) -> None:
    """Write a report, then show its summary: nothing that befalls the terminal costs the report, nor a full disk the summary."""
    try:
        with terminal_bar(desc="writing the report", bar_format="{desc} …"):
            paths = write()
    finally:
        say(fit(summary))
        if expectation:
            say(fit(expectation.text()))
    say(where_report_lies(out, paths))


def where_report_lies(out: Path, paths: list[Path], beside: str = "") -> str:
    """The last line of an analysis."""
    place = escaped(str(out))
    return f"Report  {os.path.join(place, 'report.html')} ({len(paths)} files in {place}{beside})"


@dataclass(frozen=True)
class ClassLists:
    """The flag of analyses that sort tokens into classes."""

    token_classes: Path | None = None
    """JSON file, class -> list of texts, in place of the library's lists (sysout_jax/outliers/tokens.py)."""

    def load_classes(self) -> TokenClasses:
        return TokenClasses.from_file(self.token_classes) if self.token_classes else TokenClasses()


def settings(args: Source, prepared: Prepared, *others: Prepared) -> dict[str, Any]:
    """What a report records of its run: models, flags, config of the first, tokens read, versions, device and kernel."""
    flags = {
        name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(args).items()
    }
    tokenizer = prepared.lm.tokenizer
    return run_settings(
        prepared.lm.module.kernel,
        models=[each.lm.name for each in (prepared, *others)],
        flags=flags,
        notes=prepared.notes,
        accepted_settings=prepared.lm.accepted,
        config=config_to_dict(prepared.lm.config),
        **({"stored_as": kinds} if (kinds := prepared.lm.stored_as) else {}),
        tokenizer=None
        if tokenizer is None
        else {"bos_id": tokenizer.bos_id, "adds_bos": tokenizer.adds_bos},
        sequences=prepared.tokens.shape[0],
        length=prepared.tokens.shape[1],
    )
