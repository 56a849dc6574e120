"""Metrics of predictions: sums per unit, calibration, intervals. For language models and classifiers alike."""

from nanolm.metrics.intervals import (
    Estimate,
    Interval,
    Units,
    ece_interval,
    estimate,
    independent_units,
    interval,
    paired_interval,
)
from nanolm.metrics.meter import CalibrationMeter, GroupedMeter, ReliabilityBins
from nanolm.metrics.trailing import TrailingCalibration, confidence_histogram

__all__ = [
    "CalibrationMeter",
    "Estimate",
    "GroupedMeter",
    "Interval",
    "ReliabilityBins",
    "TrailingCalibration",
    "Units",
    "confidence_histogram",
    "ece_interval",
    "estimate",
    "independent_units",
    "interval",
    "paired_interval",
]
