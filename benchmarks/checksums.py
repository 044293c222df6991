"""What the checksums of a run cost: seconds at a save, at a resume and when the run ends, as a share of the whole run.

    python benchmarks/checksums.py                    # configs/cpu_small.py, and configs/gpt2.py with one sequence a step

A save computes a checksum of every value before training goes on, and one of every file while it does; both count. A resume and the end
of a run read files and values again. A step is timed beside them in turn; where it takes fewer sequences than the config's, it counts as many times.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
from contest import time_in_turn

#: Config and how many sequences its timed step takes.
RUNS = {"cpu_small": 16, "gpt2": 1}


@dataclass(frozen=True)
class Args:
    """Time checksums beside training steps."""

    configs: tuple[str, ...] = tuple(RUNS)
    repeat: int = 3


def main() -> None:
    args = tyro.cli(Args)
    for name in args.configs:
        print(f"configs/{name}.py")
        measure(name, args.repeat)


def measure(name: str, repeat: int) -> None:
    """Print seconds of each part and the share of all of them, for a run that is resumed once."""
    import jax
    import numpy as np

    from sysout_jax.checkpoints import run_checkpoints
    from sysout_jax.sharding import make_mesh
    from sysout_jax.storage.fingerprint import fingerprints
    from sysout_jax.storage.seal import write_seal
    from sysout_jax.training.checkpoints import Checkpoints
    from sysout_jax.training.config import load_config
    from sysout_jax.training.host_memory import keep_freed_memory
    from sysout_jax.training.step import make_program
    from sysout_jax.training.stored_state import read_back, values_by_path

    keep_freed_memory()  # as python -m train does
    whole = load_config(Path(__file__).parents[1] / "configs" / f"{name}.py:default")
    config = dataclasses.replace(whole, batch_size=RUNS[name], accumulate=1, dtype="float32")
    tokens = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (1, config.batch_size, config.seq_len + 1), np.int32
    )
    mesh = make_mesh()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as directory:
        program = make_program(config, mesh)
        held = {"state": program.init(jax.random.key(0))}
        batch = jax.device_put(tokens, program.batch_sharding)

        def step() -> None:
            held["state"], seen = program.train(held["state"], batch)
            float(seen["loss"])

        path = Path(directory) / run_checkpoints.RUN / "1"
        path.parent.mkdir()
        checkpoints = Checkpoints(Path(directory), 1)
        checkpoints.save(1, held["state"], {}, 0.0)
        checkpoints.wait()
        written = run_checkpoints.read_record(path)["fingerprints"]
        parts: dict[str, Callable[[], object]] = {
            "checksums of the values, at a save and at a resume": lambda: fingerprints(
                values_by_path(held["state"])
            ),
            "checksums of the files, at a save": lambda: write_seal(path),
            "the files held against them, at a resume": lambda: run_checkpoints.check_whole(path),
            "files and values read again, at the end": lambda: read_back(path, written),
        }
        times = time_in_turn({"step": step} | parts, repeat)
        checkpoints.close()
    seconds = {part: statistics.median(found) for part, found in times.items()}
    seconds["step"] *= whole.batch_size / config.batch_size
    values, files, check, again = (seconds[part] for part in parts)
    saves = whole.last_step // whole.save_every
    spent = saves * (values + files) + (check + values) + again
    run = whole.last_step * seconds["step"]
    for part, found in seconds.items():
        print(f"  {part:<52}{found:>10.3f} s")
    print(f"  a run of {whole.last_step:,} steps with {saves} saves and one resume: {spent:.1f} of {run:,.0f} s, {spent / run:.2g} of it (target 0.02)")  # fmt: skip
    print(
        f"  they are more than 0.02 of it where a step takes less than {1e3 * spent / whole.last_step / 0.02:.0f} ms"
    )


if __name__ == "__main__":
    main()
