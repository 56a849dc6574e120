"""Fits that make probabilities reflect real uncertainty: the temperature and other calibrators.

They consume results of ``nanolm.loss``, for binary, softmax and language-model tasks alike. The metrics are in
``nanolm.metrics``; the meter can be imported from here too.
"""

from nanolm.calibration.temperature import TemperatureFit, fit_temperature, fit_temperature_from_logits, nll_curve
from nanolm.metrics.meter import CalibrationMeter

__all__ = [
    "CalibrationMeter",
    "TemperatureFit",
    "fit_temperature",
    "fit_temperature_from_logits",
    "nll_curve",
]
