"""Batches as a pure function of seed and step, so that a loader has no position to save.

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
    ``[0, n - W * T]``: all but fewer than ``2 * T`` of the targets. Memory does not depend on ``n``.

    Args:
        split: the tokens.
        sequence_length: ``T``, targets per window.
        batch_size: ``B``, windows per step, of all processes together.
        seed: decides offsets and order.

    Raises:
        DataError: the split is shorter than one window.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, batch_size: int, seed: int):
        if split.num_tokens < sequence_length:
            raise DataError(
                f"the {split.name} split: expected one window of trainer.sequence_length={sequence_length:,} or more, "
                f"found {split.num_tokens:,} tokens: give more text, or lower trainer.sequence_length"
            )
        self.split = split
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self.windows_per_epoch = max(1, (split.num_tokens - sequence_length + 1) // sequence_length)
        self._spare = split.num_tokens - self.windows_per_epoch * sequence_length

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets of a step, both (B, T) int64; a target is the token after its input."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows [first, last) of the batch, for one process or micro-batch; both (last - first, T) int64."""
        length = self.sequence_length
        ids = np.empty((last - first, length + 1), dtype=np.int64)
        for row, start in enumerate(self.first_targets(step, first, last).tolist()):
            ids[row] = self.split.read(start, length + 1)
        tokens = torch.from_numpy(ids)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, step: int) -> np.ndarray:
        """Return the numbers, ascending, of the documents that the targets of a step come from."""
        document_starts = self.split.documents.first_target
        starts = self.first_targets(step, 0, self.batch_size)
        lows = np.searchsorted(document_starts, starts, side="right") - 1
        highs = np.searchsorted(document_starts, starts + self.sequence_length, side="left")
        return np.unique(np.concatenate([np.arange(low, high) for low, high in zip(lows, highs, strict=True)]))

    def first_targets(self, step: int, first: int, last: int) -> np.ndarray:
        """Return the first target of each of the rows [first, last) of a step, int64."""
        assert 0 <= first <= last <= self.batch_size
        windows = step * self.batch_size + np.arange(first, last, dtype=np.int64)
        epochs, positions = np.divmod(windows, self.windows_per_epoch)
        starts = np.empty_like(windows)
        for epoch in np.unique(epochs).tolist():
            key, here = f"loader/{self.seed}/{epoch}", epochs == epoch
            offset = keyed_integer(f"{key}/offset", self._spare + 1)
            permutation = Permutation(self.windows_per_epoch, f"{key}/order")
            starts[here] = offset + permutation(positions[here]) * self.sequence_length
        return starts
