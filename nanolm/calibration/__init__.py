"""How well probabilities reflect real uncertainty: streaming metrics, the fitted temperature, intervals.

Everything consumes what ``nanolm.loss`` returns, for binary, softmax and language-model tasks alike.
"""

from nanolm.calibration.intervals import (
    Estimate,
    Interval,
    Units,
    ece_interval,
    estimate,
    independent_units,
    interval,
    paired_interval,
)
from nanolm.calibration.meter import CalibrationMeter, GroupedMeter, ReliabilityBins
from nanolm.calibration.temperature import TemperatureFit, fit_temperature, fit_temperature_from_logits, nll_curve
from nanolm.calibration.trailing import TrailingCalibration, confidence_histogram

__all__ = [
    "CalibrationMeter",
    "Estimate",
    "GroupedMeter",
    "Interval",
    "ReliabilityBins",
    "TemperatureFit",
    "TrailingCalibration",
    "Units",
    "confidence_histogram",
    "ece_interval",
    "estimate",
    "fit_temperature",
    "fit_temperature_from_logits",
    "independent_units",
    "interval",
    "nll_curve",
    "paired_interval",
]
