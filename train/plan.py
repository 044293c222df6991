"""python -m train.plan --config configs/X.py --topology v5e:16x16 [overrides]: would this run fit that slice? Needs no TPU."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sysout_jax.commands.cli import run, say
from sysout_jax.planning import GIB, Plan, plan_analysis, plan_training
from train.settings import Settings, parse


@dataclass(frozen=True)
class Command:
    """Compile a training or analysis step for a TPU slice and say what it needs per chip."""

    config: Path
    """Python file that defines `config`."""
    topology: str
    """Kind of chip and shape of the slice: v4:2x2x2, v5e:16x16, v5p:4x4x4, v6e:8x8."""
    settings: Settings
    analyze: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Plan one layer's step of the analyses instead of the training step."""


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is there to compile, not to run
    command = parse(Command, "python -m train.plan", __doc__, sys.argv[1:], topology=tyro.MISSING)
    plan = plan_analysis if command.analyze else plan_training
    say(describe(plan(command.settings, command.topology)))


def describe(plan: Plan) -> str:
    """The plan as a terminal shows it."""
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [
        plan.step,
        f"{plan.topology}: {plan.chips} × {plan.device_kind}, mesh {mesh}, attention {plan.kernel}",
        f"memory per chip   {plan.memory / GIB:.2f} of {plan.capacity / GIB:.0f} GiB: {verdict} (arguments "
        f"{plan.arguments / GIB:.2f}, temporaries {plan.temporaries / GIB:.2f}, code {plan.code / GIB:.2f})",
        f"FLOPs per chip    {plan.program_flops:.3e} in matrix products, {plan.program_flops / plan.model_flops:.2f} "
        "of the model's own count",
        f"bytes per chip    {plan.bytes_accessed:.3e} (XLA's estimate, loop bodies once)",
        "(T, T) buffers    " + (", ".join(plan.quadratic) or "none"),
    ]
    for collective in plan.collectives:
        lines.append(
            f"{collective.kind + ' ':<18}{collective.count} in the program, {collective.bytes / GIB:.3f} GiB of results"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
