"""What a run reads: batches as global arrays, and the fixed slices for evaluation and monitoring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from sysout_jax.data.batches import batches, validation_slice
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loss import NONE
from sysout_jax.training.step import Program


class Part(NamedTuple):
    """A part of the validation slice: `tokens` (B, T + 1), whose first `sequences` rows are of the slice; the others hold -1 throughout."""

    tokens: jax.Array
    sequences: int
    masked: bool
    """Whether any part of this slice has such other rows: all of its parts are then evaluated by one program."""


class Feed:
    """Training batches in order, with a position that checkpoints keep (`iterator`); validation and probe sequences.

    Raises InputError for data that cannot be read or is too short.
    """

    def __init__(self, config: TrainConfig, program: Program):
        self._accumulate, self._program = config.accumulate, program
        vocab_size = config.model.vocab_size
        self.iterator = batches(
            *(config.data, "train", config.batch_size, config.seq_len),
            seed=config.seed,
            vocab_size=vocab_size,
        )
        self._validation = validation_slice(
            config.data, config.seq_len, config.eval_sequences, vocab_size
        )
        mesh = program.eval_sharding.mesh
        self._shards = mesh.size // mesh.shape["tensor"]
        self._rows = config.batch_size // config.accumulate  # that are on the devices at once
        count = -(-config.monitor_sequences // self._shards) * self._shards
        self._probe = np.resize(self._validation, (count, config.seq_len + 1))[:, :-1]

    def next(self) -> jax.Array:
        """The next training batch, (A, B / A, T + 1)."""
        local = next(self.iterator)
        local = local.reshape(self._accumulate, len(local) // self._accumulate, -1)
        shape = (self._accumulate, self._rows, local.shape[-1])
        return jax.make_array_from_process_local_data(self._program.batch_sharding, local, shape)

    def probe(self) -> jax.Array:
        """The monitor's sequences, (N, T): `monitor_sequences`, rounded up to what the devices share evenly."""
        return self._everywhere(self._probe)

    def validation_parts(self) -> Iterator[Part]:
        """The validation slice, each of its sequences once. Only the last part is filled up, to what the devices share evenly, or smaller."""
        sequences, shards = len(self._validation), self._shards
        each = -(-sequences // shards)
        most = min(each, self._rows // shards)
        # a size that divides them needs one compilation; a small one is slow
        size = shards * next((n for n in range(most, most // 2, -1) if each % n == 0), most)
        more = each * shards - sequences
        rows = np.pad(self._validation, ((0, more), (0, 0)), constant_values=NONE)
        for start in range(0, len(rows), size):
            tokens = self._everywhere(rows[start : start + size])
            yield Part(tokens, min(len(tokens), sequences - start), more > 0)

    def _everywhere(self, tokens: np.ndarray) -> jax.Array:
        """Host tokens that every process holds, spread over the devices."""
        sharding = self._program.eval_sharding
        return jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index])
