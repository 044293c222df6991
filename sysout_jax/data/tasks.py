"""Sequences of which it is known what there is to read, and what the best possible loss is: characters that follow a table or are copied.

A window is BOS and T characters, or T + 1 characters. The first is drawn by its frequency. After a character that asks for a copy comes the one before it;
after any other, one is drawn from that character's row of a text's bigram table. The first never asks for a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sysout_jax.errors import InputError

BOS = 256  # of the byte tokenizer; a character's id is its byte
MARK = 128  # added to the id of a character that asks for a copy, where ids tell


@dataclass(frozen=True)
class Bigrams:
    """How often which byte of a text follows which. The last one counts as followed by the first, so every byte has a successor."""

    symbols: np.ndarray  # (A,) the bytes that occur, ascending
    counts: np.ndarray  # (A, A) int64: row, then column

    @property
    def frequency(self) -> np.ndarray:
        """(A,) how often each occurs."""
        return self.counts.sum(1)


def count_bigrams(blocks: Iterable[str]) -> Bigrams:
    """The table of a text that comes in blocks, over its UTF-8 bytes. InputError when it holds fewer than two."""
    pairs = np.zeros(1 << 16, np.int64)
    first = last = b""
    for block in blocks:
        raw = last + block.encode()
        ids = np.frombuffer(raw, np.uint8).astype(np.int64)
        pairs += np.bincount(ids[:-1] * 256 + ids[1:], minlength=len(pairs))
        first, last = first or raw[:1], raw[-1:] or last
    if pairs.sum() < 1:
        raise InputError("the text holds fewer than two characters; expected enough for a table")
    pairs[last[0] * 256 + first[0]] += 1
    table = pairs.reshape(256, 256)
    (symbols,) = np.nonzero(table.sum(1))
    return Bigrams(symbols, table[np.ix_(symbols, symbols)])


@dataclass(frozen=True)
class CopyTask:
    """What a window is drawn from; `bigram_backcopy` and `sparse_copy` make one."""

    bigrams: Bigrams
    first: np.ndarray  # (A,) int64: weights of a window's first character
    asks: np.ndarray  # (A,) float: how probably a character asks for a copy
    marked: bool
    """Whether a character that asks has `MARK` added to its id; otherwise it is the character itself that tells."""

    def windows(
        self, rng: np.random.Generator, count: int, length: int, bos: bool = True
    ) -> np.ndarray:
        """`count` windows of BOS and `length` characters, or without BOS of one character more, (N, T + 1) uint16."""
        size = len(self.first)
        ends = self.bigrams.counts.ravel().cumsum()  # the rows of the table, one after the other
        row_ends = self.bigrams.frequency.cumsum()
        row_starts = row_ends - self.bigrams.frequency
        first_ends = self.first.cumsum()
        before = now = np.searchsorted(first_ends, rng.integers(0, first_ends[-1], count), "right")
        asking = np.zeros(count, bool)
        ids_NxS = np.empty((count, length + 1), np.uint16)
        first = int(bos)
        ids_NxS[:, :first], ids_NxS[:, first] = BOS, self.bigrams.symbols[now]
        for position in range(first + 1, length + 1):
            # whole numbers: no row is left by a rounding
            draw = np.searchsorted(ends, rng.integers(row_starts[now], row_ends[now]), "right")
            before, now = now, np.where(asking, before, draw - now * size)
            asking = rng.random(count) < self.asks[now]
            ids_NxS[:, position] = self.bigrams.symbols[now] + MARK * (self.marked & asking)
        return ids_NxS

    def loss_floor(self, length: int, bos: bool = True) -> float:
        """The expected loss of the exact model, in nats a token: the mean entropy of the last `length` characters of a window, each given those before."""
        rows = self.bigrams.counts / self.bigrams.frequency[:, None]
        row_entropy = _entropy(rows)
        mark_entropy = _entropy(np.stack([self.asks, 1 - self.asks], -1)) * self.marked
        now = self.first / self.first.sum()
        joint = np.diag(now)  # of the character before and this one; unused as long as none asks
        asks = np.zeros_like(now)
        total = (
            float(_entropy(now)) if bos else 0.0
        )  # without BOS, the first is nobody's to predict
        for _ in range(length - bos):
            total += float(now @ ((1 - asks) * row_entropy))
            joint = (now * (1 - asks))[:, None] * rows + (joint * asks).T
            now, asks = joint.sum(0), self.asks
            total += float(now @ mark_entropy)
        return total / length


def bigram_backcopy(bigrams: Bigrams, triggers: str) -> CopyTask:
    """Bigram-Backcopy (Guo et al. 2024, arXiv 2410.13835): `triggers` are the characters that ask for a copy, always.

    A window's first character is none of them, so none ever follows another. InputError for one that is no character of the text, and
    when all are triggers.
    """
    codes = [character.encode() for character in triggers]
    for character, code in zip(triggers, codes, strict=True):
        if len(code) > 1 or code[0] not in bigrams.symbols:
            raise InputError(
                f"trigger {character!r}: is no character of the text; name some that are in it"
            )
    asks = np.isin(bigrams.symbols, [code[0] for code in codes])
    if not codes or asks.all():
        raise InputError(
            f"triggers {triggers!r}: expected at least one character of the text, and not all of them"
        )
    return CopyTask(bigrams, np.where(asks, 0, bigrams.frequency), asks.astype(float), False)


def sparse_copy(bigrams: Bigrams, idle: float) -> CopyTask:
    """At a share `idle` of the positions there is nothing to read: a character asks for a copy with probability 1 − `idle`, whatever it is.

    Its id tells (`MARK`), so the text must be ASCII. InputError when it is not, and for an `idle` that is no probability.
    """
    if not 0 <= idle <= 1:
        raise InputError(f"idle {idle:g}: expected a share from 0 to 1")
    if bigrams.symbols[-1] >= MARK:
        raise InputError(
            f"the text holds the byte 0x{bigrams.symbols[-1]:02X}; expected plain ASCII, ids from {MARK} are for marked characters"
        )
    return CopyTask(bigrams, bigrams.frequency, np.full(len(bigrams.symbols), 1 - idle), True)


def _entropy(probability: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    positive = np.where(probability > 0, probability, 1)
    return -(probability * np.log(positive)).sum(-1)
