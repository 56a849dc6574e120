"""Every metric: what it means, how it follows from sums over predictions, and how its interval is formed.

The metrics of confidence are about the top label: ``confidence`` is the largest probability, ``accuracy`` the share of
predictions whose first arg max is the target.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanolm.metrics.intervals import Scale
from nanolm.metrics.tally import Floats, column


def mean(name: str) -> Callable[[Floats], Floats]:
    """Return the function of sums that is the mean of a column over tokens, never a mean of documents' means."""
    return lambda rows: column(rows, name) / column(rows, "tokens")


def perplexity(rows: Floats) -> Floats:
    """Return exp(NLL); infinite if that overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(mean("nll")(rows)))


def bits_per_byte(rows: Floats) -> Floats:
    """Return all NLL, end-of-text included, over ln 2 and the UTF-8 bytes of the text; infinite without text."""
    with np.errstate(divide="ignore"):
        return np.asarray(column(rows, "nll") / np.log(2) / column(rows, "bytes"))


def entropy_gap(rows: Floats) -> Floats:
    """Return NLL - entropy, nats per token: the derivative of the NLL in ln(1/T), 0 at the T of the lowest NLL."""
    return mean("nll")(rows) - mean("entropy")(rows)


def calibration_error(rows: Floats) -> Floats:
    """Return NLL - NLL at the fitted temperature, nats per token."""
    return mean("nll")(rows) - mean("nll_at_temperature")(rows)


def bin_gaps(rows: Floats) -> Floats:
    """Return (..., 15) Σ_{i in b} (confidence_i - correct_i) / N, whose absolute values add up to the ECE."""
    gaps = column(rows, "bin_confidence") - column(rows, "bin_correct")
    return np.asarray(gaps / column(rows, "tokens")[..., None])


def bin_noise(rows: Floats) -> Floats:
    """Return the (..., 15) variances of ``bin_gaps`` if outcomes were independent and as likely as predicted.

    Σ c (1 - c) / N² over the predictions of a bin, taken at the bin's mean confidence c.
    """
    count, confidence = column(rows, "bin_count"), column(rows, "bin_confidence")
    variance = confidence * (1 - confidence / np.maximum(count, 1))
    return np.asarray(np.maximum(variance, 0) / column(rows, "tokens")[..., None] ** 2)


def ece(rows: Floats) -> Floats:
    """Return Σ_b |Σ_{i in b} (confidence_i - correct_i)| / N over equal bins (Naeini et al. 2015; Guo et al. 2017)."""
    return np.asarray(np.abs(bin_gaps(rows)).sum(axis=-1))


@dataclass(frozen=True)
class Metric:
    """A metric of predictions, as tables show it, as it is computed, and as its interval is formed.

    Attributes:
        of_rows: (..., WIDTH) sums to (...) values; None if it needs more than sums.
        scale: on which its interval is symmetric, see ``intervals.interval``.
    """

    label: str
    meaning: str
    of_rows: Callable[[Floats], Floats] | None = None
    scale: Scale = "log"


METRICS = {
    "nll": Metric("NLL", "nats per token, end-of-text included", mean("nll")),
    "perplexity": Metric("perplexity", "exp(NLL)", perplexity),
    "bits_per_byte": Metric("bits per byte", "all NLL / ln 2 / UTF-8 bytes of the text", bits_per_byte),
    "accuracy": Metric(
        "accuracy", "share of tokens whose most likely prediction is correct", mean("correct"), "proportion"
    ),
    "confidence": Metric(
        "confidence",
        "mean probability of the most likely token; above accuracy: overconfident",
        mean("confidence"),
        "logit",
    ),
    "ece": Metric("ECE", "mean distance of confidence and accuracy in 15 equal bins; noise raises it", ece),
    "ece_debiased": Metric("ECE, debiased", "the same without what noise adds; 0: noise alone explains it"),
    "smooth_ece": Metric("smooth ECE", "the same without bins (kernel of fitted width); noise raises it"),
    "brier": Metric("Brier", "Σ (probability - outcome)² over the vocabulary", mean("brier")),
    "entropy": Metric("entropy", "nats per token that the model expects to lose", mean("entropy")),
    "entropy_gap": Metric(
        "entropy gap", "NLL - entropy; above 0: a higher temperature lowers the NLL", entropy_gap, "identity"
    ),
    "temperature": Metric("T", "T of the lowest NLL on the calibration split"),
    "nll_at_temperature": Metric("NLL at T", "NLL with the logits divided by T", mean("nll_at_temperature")),
    "calibration_error": Metric(
        "calibration error", "NLL - NLL at T: what this T gains here; below 0 it costs", calibration_error, "identity"
    ),
    "refinement": Metric("refinement", "NLL at T: what is left", mean("nll_at_temperature")),
}
"""In the order of tables. Entropy gap and temperature are about the whole distribution, ECE and confidence about the
most likely token alone: a model can be overconfident in the one and underconfident in the other."""

NOT_DURING_TRAINING = ("ece_debiased", "temperature", "nll_at_temperature", "calibration_error", "refinement")
DURING_TRAINING = tuple(name for name in METRICS if name not in NOT_DURING_TRAINING)
"""What training logs for val, in the order of the log."""


def of_rows(row: Floats) -> dict[str, float]:
    """Return the metrics that follow from (WIDTH,) sums; those whose statistics are missing are left out."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = {name: float(metric.of_rows(row)) for name, metric in METRICS.items() if metric.of_rows is not None}
    return {name: value for name, value in found.items() if not math.isnan(value)}
