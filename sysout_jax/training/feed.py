"""What a run reads: batches as global arrays, and the fixed slices for evaluation and monitoring."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np

from sysout_jax.data.batches import batches, validation_slice
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.step import Program


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

    def validation_batches(self) -> Iterator[jax.Array]:
        """The validation slice in batches of one shape, (B, T + 1), each sequence equally often: on any mesh the mean over batches is the slice's."""
        count = math.lcm(len(self._validation), self._shards)
        rows = np.resize(self._validation, (count, self._validation.shape[1]))
        each = count // self._shards
        size = max(n for n in range(1, self._rows // self._shards + 1) if each % n == 0)
        for batch in np.split(rows, each // size):
            yield self._everywhere(batch)

    def _everywhere(self, tokens: np.ndarray) -> jax.Array:
        """Host tokens that every process holds, spread over the devices."""
        sharding = self._program.eval_sharding
        return jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index])
