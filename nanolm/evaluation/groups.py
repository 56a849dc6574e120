"""Groups of predictions whose calibration is looked at on its own: by frequency, by position, after end-of-text.

A group must be known before the outcome is: given that a rare token came, any model was overconfident, a calibrated one
too. So frequency is that of the token predicted from, not of the one that came.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nanolm.data import TokenSplit
from nanolm.evaluation.result import Slice
from nanolm.loss import NLLResult
from nanolm.metrics import GroupedMeter, Interval, Units, interval
from nanolm.metrics.sums import Array

NUM_DECILES = 10
_COUNTED_TOKENS = 1 << 24


@dataclass(frozen=True)
class TokenGroups:
    """Which group a prediction belongs to, by the frequency in the train split of the token it is made from."""

    of_id: npt.NDArray[np.int64]
    """(V,) decile of each id, 0 for the most frequent; NUM_DECILES for end-of-text"""

    @property
    def names(self) -> list[str]:
        """One name for each group, for tables and figures."""
        deciles = [f"{10 * i}–{10 * (i + 1)} %" for i in range(NUM_DECILES)]
        return [*deciles, "after end of text"]


def frequency_groups(train: TokenSplit, vocab_size: int, end_of_text_id: int) -> TokenGroups:
    """Deciles of the training text, the most frequent tokens first.

    Sorted by frequency, the ids are divided so that each decile covers about a tenth of the text; a token belongs to
    the decile that the middle of its own share falls into, so that one frequent token is never in two. Counted are the
    first 2^24 tokens of the train split.
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
    return TokenGroups(of_id)


def position_group(offset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Groups of tokens of context: 0, 1, 2–3, 4–7, 8–15, …"""
    return np.asarray(np.frexp(offset)[1], dtype=np.int64)


def position_names(sequence_length: int) -> list[str]:
    """Names of the groups of ``position_group`` for windows of this length."""
    names, low = ["0"], 1
    while low < sequence_length:
        high = min(2 * low, sequence_length) - 1
        names.append(f"{low}–{high}" if high > low else str(low))
        low *= 2
    return names


class SlicedSums:
    """Sums of each group of tokens in each unit: metrics of the groups, two of them with an interval."""

    _NAMES = ("nll", "entropy", "confidence", "correct")

    def __init__(self, units: Units, names: list[str]) -> None:
        self._blocks, self._names, self._meter = units.kind == "blocks", names, GroupedMeter(len(names))
        self._sums: Array = np.zeros((units.count, len(names), 1 + len(self._NAMES)))

    def add(
        self,
        unit: npt.NDArray[np.int64],
        group: npt.NDArray[np.int64],
        result: NLLResult,
        values: dict[str, Array],
    ) -> None:
        """Add N tokens, all of them valid, with the (N,) unit and group of each."""
        self._meter.update(result, torch.from_numpy(group))
        first, length = int(unit.min()), int(unit.max() - unit.min()) + 1
        cell = (unit - first) * len(self._names) + group
        rows = self._sums[first : first + length]
        for place, name in enumerate(("tokens", *self._NAMES)):
            weights = None if name == "tokens" else values[name]
            rows[..., place] += np.bincount(cell, weights, minlength=rows[..., 0].size).reshape(rows.shape[:2])

    def slices(self) -> list[Slice]:
        """The groups that have tokens."""
        found = zip(self._names, self._meter.num_tokens().tolist(), self._meter.metrics(), strict=True)
        return [
            Slice(name, num_tokens, metrics, self._intervals(place))
            for place, (name, num_tokens, metrics) in enumerate(found)
            if metrics
        ]

    def _intervals(self, group: int) -> dict[str, Interval]:
        sums = self._sums[:, group]
        sums = sums[sums[:, 0] > 0]
        total = sums.sum(axis=0)
        # That of independent outcomes which are as likely as the mean confidence says: at least what a bin would have.
        noise = float(total[3] * (1 - total[3] / total[0]) / total[0] ** 2)
        return {
            "entropy_gap": interval(lambda s: (s[..., 1] - s[..., 2]) / s[..., 0], sums, blocks=self._blocks),
            "confidence_gap": interval(
                lambda s: (s[..., 3] - s[..., 4]) / s[..., 0], sums, blocks=self._blocks, least_variance=max(noise, 0.0)
            ),
        }
