"""What sentencepiece's files and those made from them have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SPACE = "▁"


def implied_merges(
    names: Iterable[str], vocab: Mapping[str, int], scores: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Every way to build a piece from two others, the best-scored piece first, as sentencepiece would choose."""
    merges = []
    for name in names:
        splits = [(name[:i], name[i:]) for i in range(1, len(name))]
        known = [(a, b) for a, b in splits if a in vocab and b in vocab]
        merges += [
            (scores[name], pair) for pair in sorted(known, key=lambda p: (vocab[p[0]], vocab[p[1]]))
        ]
    merges.sort(key=lambda merge: -merge[0])
    return [pair for _, pair in merges]
