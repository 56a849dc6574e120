"""Calibration figures as functions of bins of confidence.

``confidence`` is the largest probability, ``accuracy`` the share of first arg maxes that are the target: what is
measured is top-label calibration. A bin knows its count n_b, its sum of confidences and its number correct; with means
c_b and a_b and N = Σ n_b,

    ECE    = Σ n_b/N |c_b - a_b|             (Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599)
    RMSCE  = (Σ n_b/N (c_b - a_b)²)^½        (Hendrycks et al. 2019)
    MCE    = max_b |c_b - a_b|               over bins that are not empty
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """(B,) counts, sums of confidence, and numbers correct; fractions of tokens where a bin was split."""

    count: npt.NDArray[np.int64] | Floats
    confidence: Floats
    correct: npt.NDArray[np.int64] | Floats

    def coarse(self, num_bins: int) -> "Bins":
        """Neighbouring bins put together; ``num_bins`` divides their number."""
        if len(self.count) % num_bins:
            raise ValueError(f"num_bins: expected a divisor of {len(self.count)}, found {num_bins}")
        return Bins(*(column.reshape(num_bins, -1).sum(axis=1) for column in self._columns()))

    def equal_mass(self, num_bins: int) -> "Bins":
        """Bins of equal counts, in the order of confidence.

        A bin that a boundary falls into is divided in proportion. What is known to be in the wrong place is so less
        than one bin at each boundary.
        """
        ends = np.concatenate([[0], np.cumsum(self.count)])
        edges = np.linspace(0, ends[-1], num_bins + 1)
        filled = np.concatenate([[True], np.diff(ends) > 0])
        columns = [
            np.diff(np.interp(edges, ends[filled], np.concatenate([[0], np.cumsum(column)])[filled]))
            for column in self._columns()
        ]
        return Bins(*columns)

    def _columns(self) -> tuple[npt.NDArray[np.int64] | Floats, ...]:
        return self.count, self.confidence, self.correct


def likelihood(nll: float | None, entropy: float | None) -> dict[str, float]:
    """NLL, perplexity, and where the entropy is known the entropy gap.

    The gap, NLL - entropy, is the derivative of NLL in ln(1/T): zero if and only if no temperature lowers the NLL.
    """
    assert nll is not None, "it is always known"
    found = {"nll": nll, "perplexity": math.exp(nll) if nll < 700 else math.inf}
    return found if entropy is None else found | {"entropy": entropy, "entropy_gap": nll - entropy}


def binned(bins: Bins) -> dict[str, float]:
    """Accuracy, confidence, ECE, RMSCE, MCE, and the two parts of ECE: overconfident and underconfident bins."""
    total = bins.count.sum()
    gap = bins.confidence - bins.correct  # n_b (c_b - a_b)
    filled = bins.count > 0
    return {
        "accuracy": float(bins.correct.sum() / total),
        "confidence": float(bins.confidence.sum() / total),
        "ece": float(np.abs(gap).sum() / total),
        "rmsce": math.sqrt((gap[filled] ** 2 / bins.count[filled]).sum() / total),
        "mce": float(np.abs(gap[filled] / bins.count[filled]).max()),
        "overconfidence": float(np.maximum(gap, 0).sum() / total),
        "underconfidence": float(np.maximum(-gap, 0).sum() / total),
    }


def from_fine_bins(fine: Bins, num_bins: int = 15) -> dict[str, float]:
    """Figures that need the order of confidences: equal-mass and debiased ones, smooth ECE, AURC.

    The noise within a bin shows from two tokens on, so the debiased metrics of fewer than 2 · ``num_bins`` tokens have
    fewer bins.
    """
    several = fine.equal_mass(min(num_bins, max(1, int(fine.count.sum()) // 2)))
    return {
        "ece_equal_mass": binned(fine.equal_mass(num_bins))["ece"],
        "ece_equal_mass_debiased": debiased_ece(several),
        "rmsce_debiased": debiased_rmsce(several),
        "smooth_ece": smooth_ece(fine),
        "aurc": area_under_risk_coverage(fine),
    }


def debiased_ece(bins: Bins) -> float:
    """ECE less the bias that the noise of independent tokens in a_b gives to |c_b - a_b|; never below 0.

    With a_b normal of variance a_b (1 - a_b) / n_b, the mean of |c_b - a_b| is that of a folded normal; its excess over
    the plugin value is the bias (Kumar, Liang and Ma 2019, arXiv:1909.10155, appendix G; in closed form here).
    """
    filled = bins.count > 0
    count = bins.count[filled]
    mean, accuracy = (bins.confidence[filled] - bins.correct[filled]) / count, bins.correct[filled] / count
    deviation = np.sqrt(accuracy * (1 - accuracy) / count)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(deviation > 0, mean / deviation, np.inf)
    tail = torch.special.erf(torch.from_numpy(ratio / math.sqrt(2))).numpy()
    expected = deviation * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + np.where(deviation > 0, mean * tail, 0)
    bias = np.where(deviation > 0, expected - np.abs(mean), 0)
    return max(0.0, float(((np.abs(mean) - bias) * count).sum() / count.sum()))


def debiased_rmsce(bins: Bins) -> float:
    """Root of Σ n_b/N [(c_b - a_b)² - a_b (1 - a_b) / (n_b - 1)], 0 where that is negative (Kumar et al. 2019).

    A bin of one token or less cannot tell its own noise, so nothing is taken off it.
    """
    filled = bins.count > 0
    count = bins.count[filled]
    confidence, accuracy = bins.confidence[filled] / count, bins.correct[filled] / count
    noise = np.where(count > 1, accuracy * (1 - accuracy) / np.where(count > 1, count - 1, 1), 0)
    squares = (confidence - accuracy) ** 2 - noise
    return math.sqrt(max(0.0, float((squares * count).sum() / count.sum())))


def smooth_ece(fine: Bins) -> float:
    """smECE of Błasiok and Nakkiran 2023 (arXiv:2309.12236): no bins to choose, a consistent measure.

    The residuals correct - confidence, placed at their confidence, are smoothed by a Gaussian of width σ that is
    reflected at 0 and 1; smECE_σ is the mean absolute value of the outcome, and smECE the σ where smECE_σ = σ.
    """
    residual = (fine.correct - fine.confidence) / fine.count.sum()
    size = len(residual)
    # Reflection at both ends is a periodic convolution of the even extension: one product per frequency.
    spectrum = np.fft.rfft(np.concatenate([residual, residual[::-1]]))
    frequency = np.pi * np.arange(len(spectrum))  # the extension has period 2

    def smoothed(width: float) -> float:
        values = np.fft.irfft(spectrum * np.exp(-0.5 * (width * frequency) ** 2), 2 * size)
        return float(np.abs(values[:size]).sum())

    low, high = 0.0, 1.0  # smoothed(σ) falls with σ, so σ - smoothed(σ) rises
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    return (low + high) / 2


def area_under_risk_coverage(fine: Bins) -> float:
    """AURC (Geifman et al. 2019, arXiv:1805.08206): mean error rate of the k most confident, over k = 1 … N.

    Tokens of one fine bin count as tied: their errors are spread evenly over its places.
    """
    filled = np.flatnonzero(fine.count)[::-1]
    count = fine.count[filled].astype(np.float64)
    errors = count - fine.correct[filled]
    before, errors_before = np.cumsum(count) - count, np.cumsum(errors) - errors
    # Σ_{k=1..n} 1/(M+k) = ψ(M+n+1) - ψ(M+1)
    digamma = torch.special.digamma
    harmonic = (digamma(torch.from_numpy(before + count + 1)) - digamma(torch.from_numpy(before + 1))).numpy()
    # Σ_k (E + e k/n) / (M + k) = E·harmonic + e/n (n - M·harmonic)
    areas = errors_before * harmonic + errors / count * (count - before * harmonic)
    return float(areas.sum() / count.sum())


def top_label_split(bins: Bins, squared_error: float) -> dict[str, float]:
    """Brier's score of "the first arg max is right", mean (confidence - correct)², in three parts.

    score = reliability - resolution + uncertainty (Murphy 1973), with the resolution generalised by what happens within
    bins (Stephenson et al. 2008, doi:10.1175/2007WAF2006116.1), so that the identity is exact.
    """
    total = bins.count.sum()
    filled = bins.count > 0
    gap = bins.confidence[filled] - bins.correct[filled]
    reliability = float((gap**2 / bins.count[filled]).sum() / total)
    accuracy = float(bins.correct.sum() / total)
    uncertainty = accuracy * (1 - accuracy)
    return {
        "top_label_brier": squared_error,
        "top_label_reliability": reliability,
        "top_label_resolution": reliability + uncertainty - squared_error,
        "top_label_uncertainty": uncertainty,
    }
