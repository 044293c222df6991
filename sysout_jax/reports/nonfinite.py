"""What every report says of NaN and inf, in one line: on the terminal, on the page, and as a headline where nothing else is left."""

from __future__ import annotations

from sysout_jax.nonfinite import Counts, Damaged, Nonfinite

_GROUPS = {
    "embed": "the embedding",
    "positions": "the position embedding",
    "final_norm": "the final norm",
    "lm_head": "the head",
}
#: Last parts of a tensor's path that say nothing more.
_ENDS = ("/kernel", "/scale", "/embedding")


def remarks(nonfinite: Nonfinite) -> list[str]:
    """One line, or none where everything is finite. Layers are counted from 1."""
    stored = _weights(nonfinite.weights, "stored")
    cast = _weights(nonfinite.weights, "cast")
    activations = [*_activations(nonfinite.h), *_predictions(nonfinite)]
    overflowed = nonfinite.overflowed if nonfinite.h.total else not nonfinite.weights
    if stored and not overflowed:
        stored += activations
    else:
        cast += activations
    parts = [
        f"{kind}: {', '.join(pieces)}"
        for kind, pieces in (("NaN or inf", stored), (f"{nonfinite.dtype} overflow", cast))
        if pieces
    ]
    return [f"{'; '.join(parts)}. Statistics leave them out."] if parts else []


def nothing_measured(model: str, where: str) -> str:
    """The headline where no element of h is finite."""
    return f"{model}: nothing could be measured: all of h is NaN or inf in {where}."


def tensor_name(tensor: Damaged) -> str:
    """`layer 2 mlp/down_proj`, with layers counted from 1."""
    if tensor.group in _GROUPS:
        return _GROUPS[tensor.group]
    name = tensor.tensor
    for end in _ENDS:
        name = name.removesuffix(end)
    return f"layer {int(tensor.group.removeprefix('layer_')) + 1} {name}"


def _weights(tensors: tuple[Damaged, ...], how: str) -> list[str]:
    counts = [t.cast if how == "cast" else t.nan + t.inf for t in tensors]
    holding = [t for t, count in zip(tensors, counts, strict=True) if count]
    if not holding:
        return []
    total = sum(counts)
    kept = "" if how == "cast" else "stored "
    where = f"in {tensor_name(holding[0])}"
    if len(holding) > 1:
        where = f"in {len(holding)} tensors, first {where}"
    return [f"{total:,} {kept}weight{'s' * (total > 1)} {where}"]


def _activations(h: Counts) -> list[str]:
    if h.first is None:
        return []
    place = f"sequence {h.first.sequence}, token {h.first.token}, dim {h.first.channel}"
    return [f"{_share(h)} of h from layer {h.first.layer + 1} (first at {place})"]


def _share(h: Counts) -> str:
    """Two digits; never all or nothing where it is not."""
    share = 100 * h.share
    if h.share == 1:
        return "all"
    if share >= 99.5:
        return "over 99%"
    return f"{share:.2g}%" if share >= 0.01 else "under 0.01%"


def _predictions(nonfinite: Nonfinite) -> list[str]:
    if not nonfinite.unpredicted:
        return []
    return [f"the likelihood of {nonfinite.unpredicted:,} of {nonfinite.predicted:,} next tokens"]
