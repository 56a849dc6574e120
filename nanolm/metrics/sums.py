"""Sums over units, and every metric that is a function of such sums.

A unit is a document, or a block of neighbouring tokens where documents are few. A table has a row for each unit and
grows with the units alone, not with the tokens. All units together give a metric; left out one at a time, its interval.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from nanolm.metrics.intervals import Scale

Array = npt.NDArray[np.float64]

NUM_BINS = 15
PER_TOKEN = ("nll", "confidence", "correct", "entropy", "brier", "nll_at_temperature")
BINNED = ("bin_count", "bin_confidence", "bin_correct")


def _layout() -> tuple[dict[str, slice], int]:
    columns, width = {}, 0
    for name in ("tokens", "bytes", *PER_TOKEN, *BINNED):
        columns[name] = slice(width, width := width + (NUM_BINS if name in BINNED else 1))
    return columns, width


COLUMNS, WIDTH = _layout()


def column(sums: Array, name: str) -> Array:
    """A column of (..., WIDTH) sums: (...), or (..., NUM_BINS) for one that is binned by confidence."""
    values: Array = sums[..., COLUMNS[name]]
    return values if name in BINNED else values[..., 0]


class UnitSums:
    """(U, WIDTH) sums that are filled batch by batch."""

    def __init__(self, num_units: int) -> None:
        self.values: Array = np.zeros((num_units, WIDTH))

    def add(self, unit: npt.NDArray[np.int64], per_token: dict[str, Array]) -> None:
        """Add tokens to their units.

        Args:
            unit: (N,) the unit of each token, in any order.
            per_token: (N,) values by the names of ``PER_TOKEN``, and ``bytes``; those that are missing stay 0.
        """
        first, length = int(unit.min()), int(unit.max() - unit.min()) + 1
        rows, index = self.values[first : first + length], unit - first
        column(rows, "tokens")[:] += np.bincount(index, minlength=length)
        for name, values in per_token.items():
            column(rows, name)[:] += np.bincount(index, values, minlength=length)
        # [low, high) but for confidence 1, which belongs to the last bin
        bins = np.minimum((per_token["confidence"] * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        cell, cells = index * NUM_BINS + bins, length * NUM_BINS
        for name, weights in zip(BINNED, (None, per_token["confidence"], per_token["correct"]), strict=True):
            column(rows, name)[:] += np.bincount(cell, weights, minlength=cells).reshape(length, NUM_BINS)


def per_token(name: str) -> Callable[[Array], Array]:
    """The mean of a metric over tokens, never a mean of documents' means."""
    return lambda sums: column(sums, name) / column(sums, "tokens")


def perplexity(sums: Array) -> Array:
    """exp(NLL); infinite where that overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(per_token("nll")(sums)))


def bits_per_byte(sums: Array) -> Array:
    """All NLL, end-of-text included, over ln 2 and the UTF-8 bytes of the text; infinite without text."""
    with np.errstate(divide="ignore"):
        return np.asarray(column(sums, "nll") / np.log(2) / column(sums, "bytes"))


def entropy_gap(sums: Array) -> Array:
    """NLL minus entropy, nats per token: the derivative of NLL in ln(1/T)."""
    return np.asarray((column(sums, "nll") - column(sums, "entropy")) / column(sums, "tokens"))


def bin_gaps(sums: Array) -> Array:
    """(..., NUM_BINS): Σ_{i in b} (confidence_i - correct_i) / N, whose absolute values add up to the ECE."""
    return np.asarray(
        (column(sums, "bin_confidence") - column(sums, "bin_correct")) / column(sums, "tokens")[..., None]
    )


def bin_noise(sums: Array) -> Array:
    """(..., NUM_BINS): the variance of ``bin_gaps`` if outcomes were independent and as likely as they are said to be.

    Σ c (1 - c) / N² over the predictions of a bin, taken at the bin's mean confidence c.
    """
    count, confidence = column(sums, "bin_count"), column(sums, "bin_confidence")
    variance = confidence * (1 - confidence / np.maximum(count, 1))
    return np.asarray(np.maximum(variance, 0) / column(sums, "tokens")[..., None] ** 2)


def expected_calibration_error(sums: Array) -> Array:
    """Σ_b |Σ_{i in b} (confidence_i - correct_i)| / N over equal bins (Naeini et al. 2015; Guo et al. 2017)."""
    return np.asarray(np.abs(bin_gaps(sums)).sum(axis=-1))


def calibration_error(sums: Array) -> Array:
    """NLL - NLL at the fitted temperature: what that temperature gains, nats per token; below 0 it costs."""
    return np.asarray((column(sums, "nll") - column(sums, "nll_at_temperature")) / column(sums, "tokens"))


STATISTICS: dict[str, Callable[[Array], Array]] = {
    "nll": per_token("nll"),
    "perplexity": perplexity,
    "bits_per_byte": bits_per_byte,
    "accuracy": per_token("correct"),
    "confidence": per_token("confidence"),
    "entropy": per_token("entropy"),
    "entropy_gap": entropy_gap,
    "ece": expected_calibration_error,
    "brier": per_token("brier"),
}

AT_TEMPERATURE: dict[str, Callable[[Array], Array]] = {
    "nll_at_temperature": per_token("nll_at_temperature"),
    "calibration_error": calibration_error,
    "refinement": per_token("nll_at_temperature"),
}
"""Only where a temperature was fitted."""

SCALES: Mapping[str, Scale] = MappingProxyType(
    {"accuracy": "proportion", "confidence": "logit", "entropy_gap": "identity", "calibration_error": "identity"}
)
"""The scale on which the interval of a metric is symmetric; "log" for all others, which are above 0."""
