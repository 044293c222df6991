"""python -m tests.adversary: thousands of damaged inputs and nasty command lines, and kills at random moments; `make fuzz`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from tests.adversary import corpus, report
from tests.adversary.kills import run_kills
from tests.adversary.kinds import KINDS, draw, schedule
from tests.adversary.pool import alone, build_originals, run_all

SAVED_EVERY = 100  # cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adversary", description=__doc__)
    parser.add_argument("--cases", type=int, default=300, help="damaged inputs (default 300)")
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="draws other cases")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="only these kinds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--case", help="run one case alone, KIND:SEED, and show all about it")
    parser.add_argument("--page", type=Path, help="put the figures of --json into this page and end")  # fmt: skip
    parser.add_argument("--originals", type=Path, help="where undamaged files lie or are made")
    args = parser.parse_args()
    if args.page:
        report.fill(args.page, json.loads(args.json.read_text()))
        return 0
    with tempfile.TemporaryDirectory(prefix="adversary-") as directory:
        scratch = Path(directory)
        originals = build_originals(args.originals or scratch)
        if args.case:
            kind, _, seed = args.case.rpartition(":")
            return _show(draw(kind, int(seed), originals), originals, scratch)
        figures = report.Figures()
        cases = [draw(kind, seed, originals) for kind, seed in schedule(args.cases, args.seed, args.kinds)]  # fmt: skip
        if not args.kinds:
            cases += corpus.cases()
        bar = tqdm(total=len(cases), unit="case", disable=not sys.stderr.isatty())
        for case, outcome, faults in run_all(cases, originals, scratch, args.workers):
            figures.add(case, outcome, faults)
            if bar.n % SAVED_EVERY == 0:
                figures.save(args.json)  # a long run that is stopped has something to show
            bar.update()
            bar.set_postfix(faults=len(figures.faults))
        bar.close()
        figures.save(args.json)
        if args.kills:
            with tqdm(total=args.kills, unit="kill", disable=not sys.stderr.isatty()) as bar:
                figures.kills = run_kills(
                    args.kills, args.seed, originals, scratch, args.workers, on_kill=bar.update
                )
    print(figures.table())
    figures.save(args.json)
    return 1 if figures.failed else 0


def _show(case, originals: Path, scratch: Path) -> int:
    outcome, faults = alone(case, originals, scratch)
    shown = dataclasses.asdict(case) | {"outcome": outcome, "faults": [f.signature for f in faults]}
    print(json.dumps(shown, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
