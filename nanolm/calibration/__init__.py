"""How well probabilities reflect real uncertainty: streaming metrics, the fitted temperature, intervals.

Everything consumes what ``nanolm.loss`` returns, for binary, softmax and language-model tasks alike.
"""

from nanolm.calibration.intervals import Interval, Units, bootstrap_interval, paired_interval, resampling_units
from nanolm.calibration.meter import CalibrationMeter, GroupedMeter, ReliabilityBins
from nanolm.calibration.temperature import TemperatureFit, fit_temperature, fit_temperature_from_logits, nll_curve
from nanolm.calibration.trailing import TrailingCalibration, confidence_histogram

__all__ = [
    "CalibrationMeter",
    "GroupedMeter",
    "Interval",
    "ReliabilityBins",
    "TemperatureFit",
    "TrailingCalibration",
    "Units",
    "bootstrap_interval",
    "confidence_histogram",
    "fit_temperature",
    "fit_temperature_from_logits",
    "nll_curve",
    "paired_interval",
    "resampling_units",
]
