"""One accumulator for the statistics of predictions: of a training step, a slice, each document, each example.

A tally is a table with a row of sums for each group. Every mean over predictions, and every metric of bins of
confidence, is a function of such a row (``nanolm.metrics.definitions``), whatever the group is.
"""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanolm.loss import NLLResult

Floats = npt.NDArray[np.float64]

NUM_BINS = 15
SUMS = ("tokens", "bytes", "nll", "confidence", "correct", "entropy", "brier", "nll_at_temperature")
BINNED = ("bin_count", "bin_confidence", "bin_correct")
WIDTH = len(SUMS) + len(BINNED) * NUM_BINS
"""Columns of a row: the sums, then those by bin of confidence, 15 bins each."""

TRAILING_TOKENS = 65_536


def column(rows: Floats, name: str) -> Floats:
    """Return a column of (..., WIDTH) rows: (...), or (..., NUM_BINS) if it is binned by confidence."""
    if name in SUMS:
        return np.asarray(rows[..., SUMS.index(name)])
    start = len(SUMS) + BINNED.index(name) * NUM_BINS
    return np.asarray(rows[..., start : start + NUM_BINS])


class Tally:
    """Sums over groups of predictions, in float64, on a device of its own choice.

    Attributes:
        sums: (G, 8), by ``SUMS``.
        bins: (3, G, B), by ``BINNED``, in B equal bins of confidence, [low, high) but for 1, which is in the last.
    """

    def __init__(self, num_groups: int = 1, num_bins: int = NUM_BINS, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(num_groups, len(SUMS), dtype=torch.float64, device=device)
        self.bins = torch.zeros(len(BINNED), num_groups, num_bins, dtype=torch.float64, device=device)

    def add(
        self,
        result: NLLResult,
        group: Tensor | None = None,
        num_bytes: Tensor | None = None,
        at_temperature: NLLResult | None = None,
    ) -> Self:
        """Add the valid predictions of a result; return self. A result on the tally's own GPU is not waited for.

        A statistic that a result lacks is NaN in the sums from then on, and so are the metrics that need it.

        Args:
            result: of any loss, with statistics "basic" or "full", for N predictions.
            group: (N,) int64 in [0, G); None if there is one group.
            num_bytes: (N,) bytes of text that each token stands for.
            at_temperature: the same predictions with their logits divided by the fitted temperature.
        """
        if result.confidence is None or result.correct is None:
            raise ValueError('a result without confidence: expected statistics="basic" or "full", found "none"')
        nll, confidence = result.nll.double(), result.confidence.double()
        squares = result.sum_squared_probabilities
        values: dict[str, Tensor | None] = {
            "tokens": torch.ones_like(nll),
            "bytes": num_bytes,
            "nll": nll,
            "confidence": confidence,
            "correct": result.correct,
            "entropy": result.entropy,
            "brier": None if squares is None else squares - 2 * torch.exp(-nll) + 1,  # Σ_k (p_k - y_k)²
            "nll_at_temperature": None if at_temperature is None else at_temperature.nll,
        }
        missing = torch.full_like(nll, math.nan)
        parts = [missing if (value := values[name]) is None else value.to(nll) for name in SUMS]
        device = self.sums.device
        columns = torch.where(result.valid[:, None], torch.stack(parts, dim=1), 0.0).to(device)
        group = torch.zeros(len(nll), dtype=torch.int64, device=device) if group is None else group.to(device)
        self.sums.index_add_(0, group, columns)
        if num_bins := self.bins.shape[2]:
            bins = (confidence * num_bins).long().clamp_(0, num_bins - 1).to(device)
            weights = columns[:, [SUMS.index("tokens"), SUMS.index("confidence"), SUMS.index("correct")]].T
            self.bins.view(len(BINNED), -1).index_add_(1, group * num_bins + bins, weights)
        return self

    def merge(self, other: Self) -> Self:
        """Add the sums of another tally of the same shape; change and return self."""
        self.sums += other.sums
        self.bins += other.bins
        return self

    def rows(self) -> Floats:
        """Return (G, WIDTH) sums on the CPU, fine bins put together to 15."""
        coarse = self.bins.reshape(*self.bins.shape[:2], NUM_BINS, -1).sum(dim=3)
        return torch.cat([self.sums, *coarse], dim=1).cpu().numpy()


class TrailingCalibration:
    """ECE of the last training steps that hold at least ``window`` tokens together.

    A single step of a few hundred tokens has an ECE far above 0 by chance alone. The rows of the steps are kept and
    summed anew each time, so that a run that was interrupted reads the same to the last bit as one that was not.
    """

    def __init__(self, window: int = TRAILING_TOKENS) -> None:
        self.window = window
        self._steps: list[Floats] = []

    def add(self, step: Floats) -> None:
        """Add the (WIDTH,) row of a step, and drop the steps that the window no longer needs."""
        self._steps.append(step)
        while sum(float(column(row, "tokens")) for row in self._steps[1:]) >= self.window:
            del self._steps[0]

    def total(self) -> Floats:
        """Return the (WIDTH,) sums over the window."""
        return np.asarray(np.sum(self._steps, axis=0)) if self._steps else np.zeros(WIDTH)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the window, (steps, WIDTH) float64."""
        return {"steps": torch.from_numpy(np.reshape(self._steps, (-1, WIDTH)))}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: these are not the rows of a window.
        """
        steps = stored["steps"]
        if steps.dim() != 2 or steps.shape[1] != WIDTH or steps.dtype != torch.float64:
            shape = tuple(steps.shape)
            raise ValueError(f"trailing: expected (steps, {WIDTH}) of float64, found {shape} of {steps.dtype}")
        self._steps = list(steps.numpy())
