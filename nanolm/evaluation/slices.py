"""Groups of tokens whose calibration is measured separately: by frequency, by position, after end-of-text.

A group must be known before the outcome is: given that a rare token came, any model was overconfident, even a
calibrated one. So frequency is that of the token predicted from, not of the one that came.
"""

import numpy as np
import numpy.typing as npt
import torch

from nanolm.data import TokenSplit
from nanolm.loss import NLLResult
from nanolm.metrics import Slice, Tally, column
from nanolm.metrics.definitions import entropy_gap, mean
from nanolm.metrics.intervals import Units, interval
from nanolm.metrics.tally import SUMS, Floats

NUM_DECILES = 10
FREQUENCY_NAMES = [*(f"{10 * i}–{10 * (i + 1)} %" for i in range(NUM_DECILES)), "after end of text"]
_COUNTED_TOKENS = 1 << 24

Integers = npt.NDArray[np.int64]


def frequency_groups(train: TokenSplit, vocab_size: int, end_of_text_id: int) -> Integers:
    """Return the (V,) decile of each id in the training text, 0 for the most frequent; NUM_DECILES for end-of-text.

    Sorted by frequency, the ids are divided so that each decile covers about a tenth of the text; a token belongs to
    the decile that the middle of its own share falls into, so that one frequent token is never in two. The first 2^24
    tokens of the train split are counted.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, min(train.num_tokens, _COUNTED_TOKENS), 1 << 20):
        counts += np.bincount(train.read(start + 1, min(1 << 20, train.num_tokens - start)), minlength=vocab_size)
    counts[end_of_text_id] = 0
    order = np.argsort(-counts, kind="stable")
    share = np.cumsum(counts[order]) - counts[order] / 2
    of_id = np.empty(vocab_size, dtype=np.int64)
    of_id[order] = np.minimum(share * NUM_DECILES // max(counts.sum(), 1), NUM_DECILES - 1)
    of_id[end_of_text_id] = NUM_DECILES
    return of_id


def position_group(offset: Integers) -> Integers:
    """Return the group of a number of tokens of context: 0, 1, 2–3, 4–7, 8–15, …"""
    return np.asarray(np.frexp(offset)[1], dtype=np.int64)


def position_names(sequence_length: int) -> list[str]:
    """Return the names of the groups of ``position_group`` for windows of this length."""
    names, low = ["0"], 1
    while low < sequence_length:
        high = min(2 * low, sequence_length) - 1
        names.append(f"{low}–{high}" if high > low else str(low))
        low *= 2
    return names


def confidence_gap(rows: Floats) -> Floats:
    """Return confidence - accuracy."""
    return mean("confidence")(rows) - mean("correct")(rows)


class SlicedSums:
    """Sums over each group of tokens within each unit."""

    def __init__(self, units: Units, names: list[str], device: torch.device | str = "cpu") -> None:
        self._units, self._names = units, names
        self._tally = Tally(units.count * len(names), num_bins=0, device=device)

    def add(self, unit: Integers, group: Integers, result: NLLResult) -> None:
        """Add N tokens with the (N,) unit and group of each."""
        cell = torch.as_tensor(unit * len(self._names) + group, device=result.nll.device)
        self._tally.add(result, cell)

    def slices(self) -> list[Slice]:
        """Return the metrics of the groups that have tokens."""
        sums = self._tally.sums.cpu().numpy().reshape(self._units.count, len(self._names), len(SUMS))
        return [
            self._slice(name, sums[:, place])
            for place, name in enumerate(self._names)
            if column(sums[:, place], "tokens").any()
        ]

    def _slice(self, name: str, sums: Floats) -> Slice:
        sums, blocks = sums[column(sums, "tokens") > 0], self._units.kind == "blocks"
        total = sums.sum(axis=0)
        num_tokens, confidence = float(column(total, "tokens")), float(mean("confidence")(total))
        # The variance of independent outcomes that are as likely as the mean confidence.
        noise = max(confidence * (1 - confidence) / num_tokens, 0.0)
        return Slice(
            name=name,
            num_tokens=int(num_tokens),
            nll=float(mean("nll")(total)),
            accuracy=float(mean("correct")(total)),
            confidence=confidence,
            entropy=float(mean("entropy")(total)),
            entropy_gap=interval(entropy_gap, sums, blocks=blocks),
            confidence_gap=interval(confidence_gap, sums, blocks=blocks, least_variance=noise),
        )
