"""A few hundred damaged inputs and nasty command lines, the corpus, and a few kills; `make fuzz` runs thousands.

A failing case names itself; `python -m tests.adversary --case KIND:SEED` runs it alone and shows all about it.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversary import corpus
from tests.adversary.grounds import Grounds
from tests.adversary.kills import kill_once
from tests.adversary.kinds import KINDS, Case, draw, schedule
from tests.adversary.pool import Worker, build_originals

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures with Linux"
)

CASES = 240
SOME = 400  # drawn for every test run; of these, those run that compile nothing
#: Commands that compile little or nothing.
QUICK = {"load", "convert", "train.prepare", "analyze.compare"}
#: Commands whose first run compiles for long; thousands of cases run them as well.
COMPILES = {
    "analyze.length",
    "analyze.intervene",
    "analyze.compression",
    "analyze.existence",
    "analyze.absorb",
    "analyze.all",
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    return build_originals(tmp_path_factory.mktemp("adversary"))


@pytest.fixture(scope="module")
def quick_worker(originals, tmp_path_factory) -> Iterator[Worker]:
    worker = Worker(originals, tmp_path_factory.mktemp("quick"), careful=False)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def worker(originals, tmp_path_factory) -> Iterator[Worker]:
    worker = Worker(originals, tmp_path_factory.mktemp("scratch"))
    yield worker
    worker.close()


def faults_of(cases: list[Case], worker: Worker) -> dict[str, list[str]]:
    """Signature of each fault, and the cases that have it."""
    faults = defaultdict(list)
    for case in cases:
        for fault in worker.judged(case)[1]:
            faults[fault.signature].append(case.name)
    return dict(faults)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_some_drawn_cases(kind, quick_worker, originals):
    """Of every kind, what costs little: readers, conversions, prepared data."""
    cases = [draw(kind, seed, originals) for name, seed in schedule(SOME, 3) if name == kind]
    assert faults_of([c for c in cases if c.command[0] in QUICK], quick_worker) == {}


@pytest.mark.slow
def test_quick_cases_that_found_a_fault(quick_worker):
    cases = [case for case in corpus.cases() if case.command[0] in QUICK]
    assert len(cases) > 50
    assert faults_of(cases, quick_worker) == {}


@pytest.mark.endurance
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_cases(kind, worker, originals):
    seeds = [seed for name, seed in schedule(CASES, 0) if name == kind]
    cases = [draw(kind, seed, originals) for seed in seeds]
    assert faults_of([c for c in cases if c.command[0] not in COMPILES], worker) == {}


@pytest.mark.endurance
@pytest.mark.parametrize("kind", sorted({case.kind for case in corpus.cases()}))
def test_cases_that_found_a_fault(kind, worker):
    assert faults_of([case for case in corpus.cases() if case.kind == kind], worker) == {}


@pytest.mark.endurance
def test_a_case_is_drawn_again_by_its_number(originals):
    for kind in KINDS:
        assert draw(kind, 7, originals) == draw(kind, 7, originals)
    assert len({str(draw("config", seed, originals)) for seed in range(20)}) > 10


@pytest.mark.endurance
def test_the_watchdog_ends_what_hangs(worker):
    """And a new process takes the next case."""
    case = Case("config", 0, "hf", [], ["collect", "model"])
    outcome = worker.run(case, 0.0)
    assert outcome["ended"] == "hang"
    assert worker.judged(case)[1] == []


@pytest.mark.endurance
@pytest.mark.parametrize("command", ["convert", "train.prepare", "train", "analyze.consistency"])
def test_kills(command, originals):
    """One signal each, at a moment that differs from command to command."""
    # sockets have short names, tmp_path is a long one
    with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
        grounds = Grounds(originals, Path(scratch))
        try:
            grounds.measure(command, runs=1)
            assert kill_once(f"{command}:0", grounds).faults == []
        finally:
            grounds.close()
