"""What queries look at that have something to copy, and what the others look at: runs on Bigram-Backcopy, means over seeds.

    python docs/section5/where_attention_goes.py --runs runs/section5_settings --data data/bigram_backcopy --out where.json
    python docs/section5/where_attention_goes.py --read docs/section5/attention/settings/*.json    # a table again

Of every run the layer that copies is the one whose copying queries give most to the token they are to copy. Shares of attention are means over queries from position 16 on.
A second table: by what the attention of BOS is multiplied, which sees only itself, and what this makes of BOS.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import sysout_jax as so
from sysout_jax.analyses.variants.snapshots import runs_of
from sysout_jax.data.batches import validation_slice
from sysout_jax.words import listed, number

FIRST_QUERY = 16
SCALED = (  # what attention gives is multiplied, or a part of it goes to no token
    "attention_bias",
    "context_scale",
    "gate",
    "gate_elements",
    "learned_sink",
    "softmax1",
)
#: What is looked at, and how it is called in the table.
LOOKED_AT = {
    "first": "first token",
    "itself": "itself",
    "before": "token before",
    "triggers": "t, e and spaces",
}


@dataclass(frozen=True)
class Args:
    """Measure runs of a sweep, or make the table of what was measured."""

    runs: Path | None = None
    """Directory of `python -m train.sweep`."""
    data: Path | None = None
    """What they were trained on."""
    num_seqs: int = 64
    """Windows of its validation part."""
    out: Path | None = None
    """JSON file to write; must be new."""
    read: tuple[Path, ...] = ()
    """Files that it wrote: print their table."""


def measure(run: Path, data: Path, num_seqs: int) -> dict:
    """Per layer: shares of attention of copying and of idle queries, with a row's sum, which is 1 where softmax is taken; and the life of BOS."""
    lm = so.load(run)
    meta = json.loads((data / "meta.json").read_text())
    triggers, bos = meta["task"]["triggers"], meta["windows"].get("bos_id")
    tokens_NxT = validation_slice(data, lm.config.context_length, num_seqs)[:, :-1]
    scaled = lm.config.attention in SCALED
    names = ("attn_map", "attn_out", "h_mid", "h", *(("attn_scale",) if scaled else ()))
    _, taps = so.capture(lm, tokens_NxT, names=names)
    asks_NxT = np.isin(tokens_NxT, [ord(c) for c in triggers])
    late = np.arange(tokens_NxT.shape[1]) >= FIRST_QUERY
    found: dict = {"copying": [], "idle": []}
    for kind, queries in (("copying", asks_NxT), ("idle", ~asks_NxT)):
        for layer, maps in enumerate(taps["attn_map"]):
            shares = _shares(maps, queries & late, asks_NxT)
            if scaled:
                scale_NxT = np.asarray(taps["attn_scale"][layer]).mean(axis=1)
                shares["scale"] = float(scale_NxT[queries & late].mean())
            found[kind].append(shares)
    if bos is not None:
        found["bos"] = [_bos(taps, layer) for layer in range(lm.num_layers)]
    return found


def _bos(taps: dict, layer: int) -> dict:
    """BOS in one layer: largest |h| before and after its attention, and of the layer's output over its window's mean; what scales what attention gives.

    The same of all other tokens, where the layer's output and the scale are concerned.
    """
    after_D = np.asarray(taps["h_mid"][layer], np.float32)[0, 0]  # the same in every window
    before_D = after_D - np.asarray(taps["attn_out"][layer], np.float32)[0, 0]
    h_NxTxD = np.abs(np.asarray(taps["h"][layer], np.float32))
    ratio_NxTxD = h_NxTxD / h_NxTxD.mean(axis=(1, 2), keepdims=True)
    found = {
        "before": before_D,
        "after": after_D,
        "ratio": ratio_NxTxD[:, 0],
        "ratio_of_others": ratio_NxTxD[:, 1:],
    }
    found = {name: float(np.abs(values).max()) for name, values in found.items()}
    if "attn_scale" in taps:
        scale_NxT = np.asarray(taps["attn_scale"][layer], np.float32).mean(axis=1)
        found |= {"scale": float(scale_NxT[0, 0]), "scale_of_others": float(scale_NxT[:, 1:].mean())}  # fmt: skip
    return found


def _shares(map_NxHxTxT: np.ndarray, queries_NxT: np.ndarray, asks_NxT: np.ndarray) -> dict:
    n, t = np.nonzero(queries_NxT)
    rows = np.asarray(map_NxHxTxT, np.float32).mean(axis=1)[n, t]  # (queries, T)
    q = np.arange(len(t))
    keys_up_to = np.arange(rows.shape[1]) <= t[:, None]
    even = 1 / (t + 1)
    return {
        "sum": float(rows.sum(1).mean()),
        "first": float(rows[:, 0].mean()),
        "itself": float(rows[q, t].mean()),
        "before": float(rows[q, t - 1].mean()),
        "triggers": float((rows * asks_NxT[n]).sum(1).mean()),
        "even": float(even.mean()),
        "even_triggers": float(((asks_NxT[n] & keys_up_to).sum(1) * even).mean()),
    }


def table(measured: dict[str, dict[str, dict]]) -> str:
    """Rows are settings; a number is the mean over runs, in the layer that copies."""
    lines = [
        "| setting | runs | layer that copies | copying queries: "
        + " | ".join(["token before", *(f"idle queries: {name}" for name in LOOKED_AT.values())])
        + " | weights sum to: copying, idle | scale: copying, idle |",
        "|" + " --- |" * (6 + len(LOOKED_AT)),
    ]
    for setting, runs in sorted(measured.items()):
        found = [(run, copies(run)) for run in runs.values()]

        def mean(kind: str, name: str, found=found) -> float:
            return float(np.mean([run[kind][layer].get(name, np.nan) for run, layer in found]))

        where = listed(sorted({layer + 1 for _, layer in found}))
        means = [mean("copying", "before"), *(mean("idle", name) for name in LOOKED_AT)]
        shares = " | ".join(f"{100 * each:.0f} %" for each in means)
        sums, scales = (
            ", ".join(number(mean(kind, name)) for kind in ("copying", "idle"))
            for name in ("sum", "scale")
        )
        scales = "–" if "n/a" in scales else scales
        lines.append(f"| {setting} | {len(runs)} | {where} | {shares} | {sums} | {scales} |")
    return "\n".join(lines)


OF_BOS = {
    "ratio": "largest \\|h\\| / mean: BOS",
    "ratio_of_others": "all other tokens",
    "before": "largest \\|h\\| of BOS before attention",
    "after": "after attention",
    "scale": "scale: BOS",
    "scale_of_others": "mean of all other queries",
}


def table_of_bos(measured: dict[str, dict[str, dict]]) -> str:
    """One row per run; the numbers of a cell are the layers."""
    lines = ["| run | " + " | ".join(OF_BOS.values()) + " |", "|" + " --- |" * (1 + len(OF_BOS))]
    for runs in measured.values():
        for name, layers in ((name, run["bos"]) for name, run in runs.items() if "bos" in run):
            cells = (" ".join(f"{layer[key]:.3g}" for layer in layers if key in layer) for key in OF_BOS)  # fmt: skip
            lines.append(f"| {name} | " + " | ".join(cell or "–" for cell in cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def tables(measured: dict[str, dict[str, dict]]) -> str:
    """Both, the second where it has rows."""
    return "\n\n".join(filter(None, (table(measured), table_of_bos(measured))))


def copies(run: dict) -> int:
    """The layer whose copying queries give most to the token before them."""
    return int(np.argmax([layer["before"] for layer in run["copying"]]))


def main() -> None:
    args = tyro.cli(Args)
    if args.read:
        print(tables(read(args.read)))
        return
    if args.runs is None or args.data is None or args.out is None or args.out.exists():
        sys.exit("Give --runs, --data and a new --out, or --read.")
    groups, _ = runs_of(args.runs, "seed")
    measured = {
        setting: {run.name: measure(run, args.data, args.num_seqs) for run in runs}
        for setting, runs in groups.items()
    }
    args.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(tables(measured))


def read(files: tuple[Path, ...]) -> dict[str, dict[str, dict]]:
    """Runs of all files by their settings."""
    measured: dict[str, dict[str, dict]] = {}
    for file in files:
        for setting, runs in json.loads(file.read_text()).items():
            measured.setdefault(setting, {}).update(runs)
    return measured


if __name__ == "__main__":
    main()
