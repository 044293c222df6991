"""What an outcome breaks of what docs/reliability.md promises."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

from tests.adversary.kinds import Case

SECONDS = 10.0  # of processor beyond the undamaged run's
WORK = 60.0  # likewise of a command line that asks for other work than that run, and gets it: its shapes are compiled anew
COMMANDS_IN = {"analyze.all": 8}  # commands that do the work of so many others
MEMORY = 1024.0  # MiB
LONGEST_LINE = 4000  # characters of an error
LEFT = re.compile(r"(^|/)\.[^/]*$|\.tmp$|\.partial($|/)|\.orbax-checkpoint-tmp")
FRAME = re.compile(r'File "[^"]*?/((?:sysout_jax|analyze|train)/[^"]+)", line \d+,? in (\w+)')
_TURNS = {"RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}


class Fault(NamedTuple):
    """One broken promise; equal signatures are one fault met twice."""

    promise: str
    detail: str

    @property
    def signature(self) -> str:
        return f"{self.promise}: {self.detail}" if self.detail else self.promise


def judge(case: Case, outcome: dict[str, Any], normal: dict[str, Any]) -> list[Fault]:
    """The faults of a case. `normal`: CPU seconds of the undamaged command under "cpu", right values under "values"."""
    if ended := outcome.get("ended"):  # the process, not the command
        return [Fault(ended, _frame(outcome["trace"]))]
    faults = []
    if error := outcome["exception"]:
        faults.append(Fault("traceback", f"{error['type']} in {error['where']}"))
    elif outcome["status"] not in ((case.status,) if case.status is not None else (0, 2, *case.allowed)):  # fmt: skip
        faults.append(Fault(f"status {outcome['status']}", case.command[0]))
    faults += _printed(outcome)
    other_work = case.kind == "arguments" and outcome["status"] == 0
    seconds = (WORK if other_work else SECONDS) * COMMANDS_IN.get(case.command[0], 1)
    if outcome["cpu"] > normal["cpu"] + seconds:
        faults.append(Fault("slow", case.command[0]))
    if outcome["memory"] > MEMORY:
        faults.append(Fault("memory", case.command[0]))
    faults += [
        Fault("unreadable report", f"{case.command[0]} {what}") for what in outcome["reports"]
    ]
    return faults + _written(case, outcome) + _values(case, outcome, normal)


def _printed(outcome: dict[str, Any]) -> list[Fault]:
    faults = []
    error, printed = outcome["stderr"], outcome["stdout"]
    lines = error.splitlines()
    refused = outcome["status"] in (1, 2)
    if "Traceback (most recent call last)" in error:
        kind = re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception|Interrupt))\b", error, re.M)
        faults.append(Fault("traceback printed", f"{kind[-1] if kind else '?'} in {_frame(error)}"))
    elif refused and not (len(lines) == 1 and error.startswith("error: ")):
        faults.append(Fault("not one line", _shape(lines)))
    elif "Warning" in error and not refused:
        faults.append(Fault("warning printed", _shape(lines)))
    if any(_control(c) for c in error + printed):
        faults.append(Fault("control characters", "stderr" if any(map(_control, error)) else "stdout"))  # fmt: skip
    if any(len(line) > LONGEST_LINE for line in lines):
        faults.append(Fault("endless line", _shape(lines)))
    return faults


def _control(character: str) -> bool:
    if character in "\n\t" or (character.isascii() and character.isprintable()):
        return False
    return unicodedata.category(character) == "Cc" or unicodedata.bidirectional(character) in _TURNS


def _shape(lines: list[str]) -> str:
    """The first line without what differs from case to case."""
    words = re.sub(r"/\S+", "PATH", lines[0]) if lines else "nothing"
    words = re.sub(r"[^A-Za-z:]+", " ", words)[:50].strip()
    return f"{'1 line' if len(lines) == 1 else 'some lines'}, {words}"


def _written(case: Case, outcome: dict[str, Any]) -> list[Fault]:
    faults = []
    touched = outcome["new"] + outcome["changed"] + outcome["gone"]
    if outcome["status"] != 0 and case.command[0] != "train" and touched:
        faults.append(Fault("written though refused", case.command[0]))
    lost = outcome["lost"]
    if outcome["status"] == 0 and case.command.count("--out") == 1:  # reports replace older ones
        out = case.command[case.command.index("--out") + 1 :][:1]
        lost = [name for name in lost if not name.startswith(f"in/{''.join(out)}/")]
    if case.command[0] == "train":
        # what a resumed run may touch is its own; a checkpoint that it cannot read goes aside, never away
        if outcome["status"] != 2:
            lost = [name for name in lost if "/checkpoints/" in name]
        elif any(not name.startswith("in/run/") for name in outcome["new"]):
            faults.append(Fault("written though refused", case.command[0]))
    if lost:
        faults.append(Fault("lost", f"{case.command[0]} {_kind_of_file(lost[0])}"))
    new = outcome["new"]
    if case.command[0] in ("train", "train.sweep"):  # the lock of a run stays with it
        new = [name for name in new if Path(name).name != ".lock"]
    left = [name for name in new if LEFT.search(name) or name.startswith("tmp/")]
    if left:
        faults.append(Fault("left behind", f"{case.command[0]} {_kind_of_file(left[0])}"))
    return faults


def _kind_of_file(name: str) -> str:
    return re.sub(r"[0-9a-z_]{6,}$|\d+", "N", Path(name).name)[:40]


def _values(case: Case, outcome: dict[str, Any], normal: dict[str, Any]) -> list[Fault]:
    if outcome["status"] != 0 or not case.same_values:
        return []
    if outcome.get("values") in normal["values"]:
        return []
    how = "other values" if outcome.get("values") else "nothing readable"
    return [Fault("wrong in silence", f"{how}, {case.command[0]} after damage of {_place(case)}")]


def _place(case: Case) -> str:
    """The damaged file, without numbers; of a spoiled command line there is none."""
    parts = [Path(str(edit[1])).parts[1:3] for edit in case.edits[:1]]
    return re.sub(r"\d+", "N", "/".join(*parts)) if parts else "nothing"


def _frame(trace: str) -> str:
    """The innermost frame of ours in a printed traceback; faulthandler prints the innermost first."""
    frames = FRAME.findall(trace)
    if not frames:
        return "?"
    file, name = frames[0] if "most recent call first" in trace else frames[-1]
    return f"{file}:{name}"
