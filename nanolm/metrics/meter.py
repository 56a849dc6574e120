"""Streaming metrics of one set of predictions, in memory that grows neither with tokens nor with classes."""

from typing import Self

import numpy as np
import torch

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import NLLResult
from nanolm.metrics.definitions import METRICS, of_rows
from nanolm.metrics.records import Reliability
from nanolm.metrics.tally import NUM_BINS, Floats, Tally

FINE_BINS = NUM_BINS * 1024
"""Bins so fine that the order of predictions by confidence is known except for ties within 6.5e-5."""


class CalibrationMeter:
    """Sums over predictions in 15 x 1024 bins of confidence.

    Sums are float64: meters of parts, merged in any order, agree with the meter of the whole to about 1e-13.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.tally = Tally(1, FINE_BINS, device)

    def update(self, result: NLLResult) -> Self:
        """Add the valid tokens (or examples) of a result with statistics "basic" or "full"; return self.

        Raises:
            NonFiniteError: the NLL of a valid token is NaN, or another statistic is not finite; nothing was added.
        """
        broken = result.nll.isnan()  # infinite if a probability was 0; nothing else may be
        for statistic in (result.confidence, result.entropy, result.sum_squared_probabilities):
            if statistic is not None:
                broken = broken | ~statistic.isfinite()
        if num_broken := int((broken & result.valid).sum()):
            raise NonFiniteError(
                f"{num_broken:,} of {int(result.count):,} tokens have NaN among their statistics, so no metric can be "
                "formed; the logits were NaN or infinite"
            )
        self.tally.add(result)
        return self

    def merge(self, other: Self) -> Self:
        """Add the sums of another meter; change and return self."""
        self.tally.merge(other.tally)
        return self

    @property
    def num_tokens(self) -> int:
        """Valid tokens added."""
        return int(self.tally.sums[0, 0])

    def metrics(self) -> dict[str, float]:
        """Return every metric by its name in ``evaluation.json``, see ``nanolm.metrics.definitions``.

        Entropy, the entropy gap and the Brier score are there if every result had what they need. NLL, perplexity and
        the entropy gap are infinite if a token's probability was 0; nothing is NaN.

        Raises:
            DataError: no token was added.
        """
        found = of_rows(self.tally.rows()[0]) | {"smooth_ece": self.smooth_ece()}
        return {name: found[name] for name in METRICS if name in found}

    def reliability(self, num_bins: int = NUM_BINS) -> Reliability:
        """Return the bins of a reliability diagram, their number any divisor of 15 x 1024; zeros for an empty bin."""
        count, confidence, correct = self._bins(num_bins)
        filled = np.maximum(count, 1)
        return Reliability(
            count=count.astype(np.int64).tolist(),
            confidence=(confidence / filled).tolist(),
            accuracy=(correct / filled).tolist(),
        )

    def ece(self, num_bins: int = NUM_BINS) -> float:
        """Return the expected calibration error in equal bins, any divisor of 15 x 1024."""
        count, confidence, correct = self._bins(num_bins)
        return float(np.abs(confidence - correct).sum() / count.sum())

    def smooth_ece(self) -> float:
        """Return the smECE of Błasiok and Nakkiran 2023 (arXiv:2309.12236): no bins to choose, a consistent measure.

        The residuals correct - confidence, placed at their confidence, are smoothed by a Gaussian of width σ that is
        reflected at 0 and 1; smECE_σ is the mean absolute value of the outcome, and smECE the σ where smECE_σ = σ.
        """
        count, confidence, correct = self._bins(FINE_BINS)
        residual = (correct - confidence) / count.sum()
        # Reflection at both ends is a periodic convolution of the even extension: one product per frequency.
        spectrum = np.fft.rfft(np.concatenate([residual, residual[::-1]]))
        frequency = np.pi * np.arange(len(spectrum))  # the extension has period 2

        def smoothed(width: float) -> float:
            values = np.fft.irfft(spectrum * np.exp(-0.5 * (width * frequency) ** 2), 2 * FINE_BINS)
            return float(np.abs(values[:FINE_BINS]).sum())

        low, high = 0.0, 1.0  # smoothed(σ) falls with σ, so σ - smoothed(σ) rises
        while high - low > 1e-7:
            middle = (low + high) / 2
            low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
        return (low + high) / 2

    def _bins(self, num_bins: int) -> Floats:
        """Return (3, num_bins) counts, sums of confidence, and numbers correct; DataError if no token was added."""
        if FINE_BINS % num_bins:
            raise ValueError(f"num_bins: expected a divisor of {FINE_BINS}, found {num_bins}")
        if self.num_tokens == 0:
            raise DataError("a calibration meter without a token has no metrics; the split is empty, or all is ignored")
        return np.asarray(self.tally.bins[:, 0].reshape(3, num_bins, -1).sum(dim=2).cpu().numpy())
