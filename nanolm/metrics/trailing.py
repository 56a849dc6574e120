"""ECE over a trailing window of training steps: one step of a few hundred tokens reads far above 0 by chance alone."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from nanolm.loss import NLLResult
from nanolm.metrics.meter import NUM_BINS, UNIT

WINDOW_TOKENS = 65_536


def confidence_histogram(result: NLLResult) -> Tensor:
    """(3, 15) float64 on the result's device: count, sum of confidence, and number correct in equal bins.

    No synchronisation: a training step adds up those of its micro-batches and moves one small tensor.
    """
    assert result.confidence is not None, 'statistics="basic" or "full"'
    assert result.correct is not None, 'statistics="basic" or "full"'
    bins = (result.confidence.double() * NUM_BINS).long().clamp_(0, NUM_BINS - 1)
    weights = torch.stack([result.valid.double(), result.confidence.double() * result.valid, result.correct.double()])
    return weights @ torch.nn.functional.one_hot(bins, NUM_BINS).double()


class TrailingCalibration:
    """Histograms of the last steps that hold at least ``window`` tokens together.

    Sums are kept as integers, in units of 2^-28, so that steps can be added and taken away without a trace: a run that
    was interrupted reads the same as one that was not.
    """

    def __init__(self, window: int = WINDOW_TOKENS) -> None:
        self.window = window
        self._steps: deque[Tensor] = deque()
        self._total = torch.zeros(3, NUM_BINS, dtype=torch.int64)

    def add(self, histogram: Tensor) -> None:
        """Add the (3, 15) histogram of a step; steps that the window no longer needs go."""
        step = histogram.cpu().double().clone()
        step[1] /= UNIT
        whole = step.round().long()
        self._steps.append(whole)
        self._total += whole
        while int(self._total[0].sum() - self._steps[0][0].sum()) >= self.window:
            self._total -= self._steps.popleft()

    def ece(self) -> float | None:
        """Expected calibration error of the window in 15 equal bins; None before the first token."""
        count, confidence, correct = self._total.double()
        total = float(count.sum())
        return float((confidence * UNIT - correct).abs().sum()) / total if total else None

    def state_dict(self) -> dict[str, Any]:
        """The histograms of the window, (steps, 3, 15) int64."""
        return {"steps": torch.stack(list(self._steps)) if self._steps else self._total.new_empty(0, 3, NUM_BINS)}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            ValueError: these are not the histograms of a window.
        """
        shape, kind = tuple(stored["steps"].shape), stored["steps"].dtype
        if shape[1:] != (3, NUM_BINS) or kind != torch.int64:
            raise ValueError(f"trailing: expected (steps, 3, {NUM_BINS}) of int64, found {shape} of {kind}")
        self._steps = deque(stored["steps"].clone())
        self._total = stored["steps"].sum(dim=0)
