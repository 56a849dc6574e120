"""Metrics of predictions: sums per unit, calibration, intervals; for language models and classifiers alike."""

from nanolm.metrics.definitions import DURING_TRAINING, METRICS
from nanolm.metrics.evaluation import Evaluation
from nanolm.metrics.intervals import Estimate, independent_units, paired_interval
from nanolm.metrics.measurement import Measurement, intervals_of, read_units
from nanolm.metrics.meter import CalibrationMeter
from nanolm.metrics.records import Calibration, CalibrationSize, CalibratorRow, Interval, Reliability, Slice
from nanolm.metrics.tally import NUM_BINS, WIDTH, Tally, TrailingCalibration, column

__all__ = [
    "DURING_TRAINING",
    "METRICS",
    "NUM_BINS",
    "WIDTH",
    "Calibration",
    "CalibrationMeter",
    "CalibrationSize",
    "CalibratorRow",
    "Estimate",
    "Evaluation",
    "Interval",
    "Measurement",
    "Reliability",
    "Slice",
    "Tally",
    "TrailingCalibration",
    "column",
    "independent_units",
    "intervals_of",
    "paired_interval",
    "read_units",
]
