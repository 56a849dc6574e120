"""Evaluation of a model on a split: windows, sums, figures with their intervals, and the fitted temperature."""

from nanolm.evaluation.groups import TokenGroups, frequency_groups
from nanolm.evaluation.result import MEANINGS, Evaluation, interval_text, summary_values, table
from nanolm.evaluation.score import Extras, evaluate
from nanolm.evaluation.temperature import FittedTemperature, calibration_json, fit_on_split, try_fit_on_split
from nanolm.evaluation.windows import windows

__all__ = [
    "MEANINGS",
    "Evaluation",
    "Extras",
    "FittedTemperature",
    "TokenGroups",
    "calibration_json",
    "evaluate",
    "fit_on_split",
    "frequency_groups",
    "interval_text",
    "summary_values",
    "table",
    "try_fit_on_split",
    "windows",
]
