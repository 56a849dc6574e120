"""Batches as a pure function of seed and step: nothing to save, nothing to lose.

An epoch cuts the stream of targets into disjoint windows from a fresh offset and visits them in a keyed random
order. Window number ``step * batch_size + row`` counts through the epochs without end.
"""

import numpy as np
import torch

from nanolm.data.permutation import Permutation, keyed_integer
from nanolm.data.prepared import TokenSplit
from nanolm.errors import DataError


class Loader:
    """Windows of a split, without replacement within an epoch, in an order that the seed decides.

    Of ``n`` targets, an epoch covers ``W = max(1, (n - T + 1) // T)`` windows of ``T`` from an offset in
    ``[0, n - W * T]``: all but fewer than ``2 * T`` of the targets, every phase of the windows being possible.
    Memory does not depend on ``n``.

    Args:
        split: the tokens.
        sequence_length: ``T``, targets per window.
        batch_size: ``B``, windows per step, of all processes together.
        seed: another seed gives another order.

    Raises:
        DataError: the split is shorter than one window.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, batch_size: int, seed: int):
        if split.num_tokens < sequence_length:
            raise DataError(
                f"the {split.name} split has {split.num_tokens:,} tokens, fewer than one window of "
                f"trainer.sequence_length={sequence_length:,}: give more text, or a sequence_length of at most "
                f"{split.num_tokens:,}"
            )
        self.split = split
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self.windows_per_epoch = max(1, (split.num_tokens - sequence_length + 1) // sequence_length)
        self._spare = split.num_tokens - self.windows_per_epoch * sequence_length
        self._epochs: dict[int, tuple[int, Permutation]] = {}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a step, both (B, T) int64; a target is the token after its input."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [first, last) of the same batch, for one process or micro-batch; both (last - first, T) int64."""
        length = self.sequence_length
        ids = np.empty((last - first, length + 1), dtype=np.int64)
        for row, start in enumerate(self.first_targets(step, first, last).tolist()):
            ids[row] = self.split.read(start, length + 1)
        tokens = torch.from_numpy(ids)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that the first row of a step belongs to."""
        return step * self.batch_size // self.windows_per_epoch

    def documents(self, step: int) -> np.ndarray:
        """The numbers, ascending, of the documents that the targets of a step come from, to name in a message."""
        document_starts = self.split.documents.first_target
        starts = self.first_targets(step, 0, self.batch_size)
        lows = np.searchsorted(document_starts, starts, side="right") - 1
        highs = np.searchsorted(document_starts, starts + self.sequence_length, side="left")
        return np.unique(np.concatenate([np.arange(low, high) for low, high in zip(lows, highs, strict=True)]))

    def first_targets(self, step: int, first: int, last: int) -> np.ndarray:
        """The first target of each of the rows [first, last) of a step, int64."""
        assert 0 <= first <= last <= self.batch_size
        windows = step * self.batch_size + np.arange(first, last, dtype=np.int64)
        epochs, positions = np.divmod(windows, self.windows_per_epoch)
        starts = np.empty_like(windows)
        for epoch in np.unique(epochs).tolist():
            offset, permutation = self._epoch(epoch)
            here = epochs == epoch
            starts[here] = offset + permutation(positions[here]) * self.sequence_length
        return starts

    def _epoch(self, epoch: int) -> tuple[int, Permutation]:
        """The offset and order of an epoch; the last two asked for are kept."""
        if epoch not in self._epochs:
            key = f"loader/{self.seed}/{epoch}"
            offset = keyed_integer(f"{key}/offset", self._spare + 1)
            while len(self._epochs) >= 2:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = offset, Permutation(self.windows_per_epoch, f"{key}/order")
        return self._epochs[epoch]
