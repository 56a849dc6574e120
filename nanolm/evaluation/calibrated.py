"""Figures of a language model under maps of its probabilities: those of ``nanolm.calibration.calibrators``."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nanolm.calibration.calibrators import smoothing_inverted
from nanolm.loss import LossOptions
from nanolm.metrics import CalibrationMeter
from nanolm.metrics.measurement import Measurement, finite

COLUMNS = ("nll", "ece", "smooth_ece", "brier", "accuracy", "confidence", "entropy_gap")
"""The figures of the table; ``evaluation.json`` holds more."""


class InverseSmoothing:
    """The meter of tokens whose label smoothing is inverted: p = (q - ε/V) / (1-ε)."""

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing
        self.meter = CalibrationMeter()
        self._floored = 0.0

    def add(self, hidden: Tensor, weight: Tensor, targets: Tensor, loss: LossOptions) -> None:
        """Add N tokens: (N, D) hidden states, the (V, D) head, (N,) targets, the model's softcap and temperature."""
        for result, share in smoothing_inverted(hidden, weight, targets, loss, self.label_smoothing):
            self.meter.update(result)
            self._floored += share * len(result.nll)

    @property
    def share_floored(self) -> float:
        """Share of all probabilities that the map would have made negative."""
        return self._floored / max(self.meter.num_tokens, 1)


def calibrator_rows(measured: Measurement, inverted: InverseSmoothing | None) -> list[dict[str, Any]]:
    """One row for each map, with every figure of its meter, as ``compare_calibrators`` gives them for a classifier."""
    meters = [("none", measured.meter, "")]
    if measured.meter_at_temperature is not None:
        meters.append(("temperature", measured.meter_at_temperature, "one T, fitted on the calibration split"))
    if inverted is not None:
        note = f"ε = {inverted.label_smoothing:g}; share of probabilities floored: {inverted.share_floored:.2%}"
        meters.append(("inverse smoothing", inverted.meter, note))
    return [
        {"calibrator": name, **{key: finite(value) for key, value in meter.metrics().items()}, "note": note}
        for name, meter, note in meters
    ]


def calibrator_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Header and one row of text for each calibrator of a JSON content, a language model's or a classifier's."""
    header = ["calibrator", *(name.replace("_", " ") for name in COLUMNS), "note"]
    return [
        header,
        *([row["calibrator"], *(_cell(row.get(name)) for name in COLUMNS), row["note"]] for row in rows),
    ]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:#.4g}"
