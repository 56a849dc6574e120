"""Evaluation of a model on a split: windows, sums, figures with their intervals, and the fitted temperature."""

from nanolm.evaluation.calibrated import calibrator_cells
from nanolm.evaluation.calibration_sizes import temperature_by_size
from nanolm.evaluation.groups import TokenGroups, frequency_groups
from nanolm.evaluation.result import MEANINGS, Evaluation, interval_text, summary_values, table, table_rows
from nanolm.evaluation.score import Extras, all_extras, evaluate
from nanolm.evaluation.temperature import FittedTemperature, calibration_json, fit_on_split, try_fit_on_split
from nanolm.evaluation.windows import windows
from nanolm.metrics.measurement import Measurement, finite, prediction_values

__all__ = [
    "MEANINGS",
    "Evaluation",
    "Extras",
    "FittedTemperature",
    "Measurement",
    "TokenGroups",
    "all_extras",
    "calibration_json",
    "calibrator_cells",
    "evaluate",
    "finite",
    "fit_on_split",
    "frequency_groups",
    "interval_text",
    "prediction_values",
    "summary_values",
    "table",
    "table_rows",
    "temperature_by_size",
    "try_fit_on_split",
    "windows",
]
