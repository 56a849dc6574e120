"""Streaming calibration: sums over tokens, from which every figure follows, in memory that does not grow.

Each value is rounded to a multiple of 2^-28 (4e-9, far below the error of the float32 it came in) and summed as an
integer. Integers add exactly: two meters merged in any order, over any division of the data, agree in every bit, and no
counter stops growing at 2^24.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import NLLResult
from nanolm.metrics.calibration import Bins, binned, from_fine_bins, likelihood, top_label_split

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NUM_BINS = 15
FINE_BINS = NUM_BINS * 1024
"""15 x 1024: bins so fine that what is sorted by confidence is known but for ties within 6.5e-5."""

UNIT = 2.0**-28
_LARGEST_NLL = 2.0**20
_TOKENS_AT_ONCE = 1 << 20  # a float64 then counts units of any bin exactly

OPTIONAL = ("entropy", "brier")
"""Per-token values that a result may lack; a figure that needs one is given if every update had it."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Equal bins of confidence, [low, high) but for 1, which is in the last. Where count is 0, so are the others."""

    count: Integers
    """(B,)"""
    confidence: Floats
    """(B,) mean"""
    accuracy: Floats
    """(B,) mean"""


class GroupedMeter:
    """Sums for several groups of tokens, in ``num_bins`` bins of confidence each.

    Memory O(num_groups · num_bins), whatever the number of tokens and classes.
    """

    def __init__(self, num_groups: int, num_bins: int = NUM_BINS) -> None:
        if num_bins % NUM_BINS:
            raise ValueError(f"num_bins: expected a multiple of {NUM_BINS}, found {num_bins}")
        self.num_groups, self.num_bins = num_groups, num_bins
        self._count, self._correct, self._confidence = (np.zeros((num_groups, num_bins), np.int64) for _ in range(3))
        self._sums = {name: np.zeros(num_groups, np.int64) for name in ("nll", "squared_error", *OPTIONAL)}
        self._infinite = np.zeros(num_groups, np.int64)
        self._known = set(OPTIONAL)

    def update(self, result: NLLResult, group: torch.Tensor | None = None) -> Self:
        """Add the valid tokens of a result with statistics "basic" or "full".

        Args:
            result: of any of the losses; ``nll``, ``confidence`` and ``correct`` are needed.
            group: (N,) int64 in [0, num_groups), the group of each token; None where there is one.

        Raises:
            NonFiniteError: a valid token's NLL is NaN, or another statistic is not finite; nothing was added.
        """
        valid = result.valid.cpu().numpy()
        if result.confidence is None or result.correct is None:
            raise ValueError('a result without confidence: expected statistics="basic" or "full", found "none"')
        nll, confidence = _floats(result.nll)[valid], _floats(result.confidence)[valid]
        correct = result.correct.cpu().numpy()[valid]
        values = {"nll": nll, "squared_error": np.square(confidence - correct)}
        if result.entropy is not None:
            values["entropy"] = _floats(result.entropy)[valid]
        if result.sum_squared_probabilities is not None:
            # Σ_k (p_k - y_k)² = Σ p² - 2 p_t + 1
            values["brier"] = _floats(result.sum_squared_probabilities)[valid] - 2 * np.exp(-nll) + 1
        broken = np.isnan(nll) | np.isnan(confidence)
        for name, column in values.items():
            if name != "nll":  # which is infinite where a probability was 0; nothing else may be
                broken |= ~np.isfinite(column)
        if broken.any():
            raise NonFiniteError(
                f"{broken.sum():,} of {len(nll):,} tokens have NaN among their statistics, so no metric can be formed; "
                "the logits were NaN or infinite"
            )
        if len(nll):
            self._known &= values.keys()
        groups = np.zeros(len(nll), np.int64) if group is None else group.cpu().numpy()[valid]
        for start in range(0, len(nll), _TOKENS_AT_ONCE):
            part = slice(start, start + _TOKENS_AT_ONCE)
            self._add(groups[part], confidence[part], correct[part], {name: v[part] for name, v in values.items()})
        return self

    def _add(
        self, group: Integers, confidence: Floats, correct: npt.NDArray[np.bool_], values: dict[str, Floats]
    ) -> None:
        bins = np.minimum((confidence * self.num_bins).astype(np.int64), self.num_bins - 1)
        cell, cells = group * self.num_bins + bins, self._count.size
        for table, weights in (
            (self._count, None),
            (self._correct, correct),
            (self._confidence, np.rint(confidence / UNIT)),
        ):
            table += np.bincount(cell, weights, minlength=cells).astype(np.int64).reshape(table.shape)
        infinite = values["nll"] > _LARGEST_NLL
        self._infinite += np.bincount(group[infinite], minlength=self.num_groups)
        values["nll"] = np.where(infinite, 0, values["nll"])
        for name, column in values.items():
            # Two halves, so that a float64 counts each exactly.
            units = np.rint(column / UNIT).astype(np.int64)
            high, low = units >> 24, units & ((1 << 24) - 1)
            high_sum, low_sum = (
                np.bincount(group, half, minlength=self.num_groups).astype(np.int64) for half in (high, low)
            )
            self._sums[name] += (high_sum << 24) + low_sum

    def merge(self, other: Self) -> Self:
        """Add the sums of another meter, exactly; changes and returns self."""
        if (self.num_groups, self.num_bins) != (other.num_groups, other.num_bins):
            raise ValueError("only meters of the same groups and bins can be merged")
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine += theirs
        self._known &= other._known
        return self

    def _arrays(self) -> list[Integers]:
        return [self._count, self._correct, self._confidence, self._infinite, *self._sums.values()]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and names."""
        return {"arrays": [torch.from_numpy(array.copy()) for array in self._arrays()], "known": sorted(self._known)}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` of a meter of the same shape gave."""
        for mine, theirs in zip(self._arrays(), stored["arrays"], strict=True):
            mine[:] = theirs.numpy()
        self._known = set(stored["known"])

    def group_metrics(self, group: int) -> dict[str, float] | None:
        """The figures of one group that do not need fine bins; None where it has no tokens."""
        count = int(self._count[group].sum())
        if count == 0:
            return None
        found = likelihood(self._mean("nll", group), self._mean("entropy", group))
        found |= binned(self._bins(group).coarse(NUM_BINS))
        brier = self._mean("brier", group)
        return found if brier is None else found | {"brier": brier}

    def _mean(self, name: str, group: int) -> float | None:
        if name in OPTIONAL and name not in self._known:
            return None
        if name == "nll" and self._infinite[group]:
            return float("inf")
        return float(self._sums[name][group] * UNIT / self._count[group].sum())

    def _bins(self, group: int) -> Bins:
        return Bins(self._count[group], self._confidence[group] * UNIT, self._correct[group])

    def metrics(self) -> list[dict[str, float] | None]:
        """For each group its figures, or None where it has no tokens."""
        return [self.group_metrics(group) for group in range(self.num_groups)]

    def num_tokens(self) -> Integers:
        """(num_groups,) valid tokens added."""
        return np.asarray(self._count.sum(axis=1))


class CalibrationMeter:
    """Streaming calibration of one set of predictions, in 15 x 1024 bins of confidence."""

    def __init__(self) -> None:
        self._meter = GroupedMeter(1, FINE_BINS)

    def update(self, result: NLLResult) -> Self:
        """Add the valid tokens (or examples) of a result with statistics "basic" or "full"; returns self.

        Raises:
            NonFiniteError: a valid token's NLL is NaN, or another statistic is not finite; nothing was added.
        """
        self._meter.update(result)
        return self

    def merge(self, other: Self) -> Self:
        """Add the sums of another meter, exactly and in any order; changes and returns self."""
        self._meter.merge(other._meter)
        return self

    @property
    def num_tokens(self) -> int:
        """Valid tokens added."""
        return int(self._meter.num_tokens().sum())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors and names."""
        return self._meter.state_dict()

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._meter.load_state_dict(stored)

    def reliability(self, num_bins: int = NUM_BINS) -> ReliabilityBins:
        """Count, mean confidence and accuracy in equal bins, for a reliability diagram; any divisor of 15 x 1024."""
        bins = self._fine().coarse(num_bins)
        filled = np.maximum(bins.count, 1)
        return ReliabilityBins(bins.count.astype(np.int64), bins.confidence / filled, bins.correct / filled)

    def ece(self, num_bins: int = NUM_BINS) -> float:
        """Expected calibration error in equal bins, any divisor of 15 x 1024; see ``metrics.binned``."""
        return binned(self._fine().coarse(num_bins))["ece"]

    def metrics(self) -> dict[str, float]:
        """Every figure by its name in ``evaluation.json``; see ``nanolm.metrics.calibration`` for their definitions.

        Entropy, the entropy gap and Brier's score are given where every result had what they need. NLL and perplexity
        are infinite where a token's probability was 0; nothing is ever NaN.

        Raises:
            DataError: no token was added.
        """
        if self.num_tokens == 0:
            raise DataError("a calibration meter without a token has no figures; the split is empty, or all is ignored")
        found = self._meter.group_metrics(0)
        assert found is not None, "there are tokens"
        squared_error = self._meter._mean("squared_error", 0)
        assert squared_error is not None, "it is always known"
        return found | from_fine_bins(self._fine()) | top_label_split(self._fine().coarse(NUM_BINS), squared_error)

    def _fine(self) -> Bins:
        return self._meter._bins(0)


def _floats(values: torch.Tensor) -> Floats:
    array: Floats = values.double().cpu().numpy()
    return array
