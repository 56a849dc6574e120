"""Predictions that the measured runs must face.

Label smoothing: the objective with weight ε on the uniform distribution is smallest at q = (1-ε) p + ε/V, for the p
that plain maximum likelihood would have found. A calibrated p so becomes too modest: its confidence falls to
(1-ε) E p_max + ε/V while its accuracy stays, so that

    ECE ≈ accuracy - confidence = ε (E p_max - 1/V),    T < 1,    p = (q - ε/V) / (1-ε) restores p.

(Szegedy et al. 2016, arXiv:1512.00567, section 7, for the objective; the rest follows where p is calibrated.)

Generalization: calibration error on new data less that on training data was found to be at most the error rate on new
data less that on training data (Carrell et al. 2022, arXiv:2210.01964): an empirical bound, not a theorem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanolm.comparison.cells import Cell, Panel
from nanolm.comparison.differences import Spread, spread
from nanolm.comparison.runs import Run

SMOOTHING = "loss.label_smoothing"


@dataclass(frozen=True)
class Smoothed:
    """A cell trained with label smoothing, what theory expects of it, and what was measured. NLL in nats."""

    cell: Cell
    plain: Cell
    label_smoothing: float
    expected_ece: float
    ece: Spread
    temperature: Spread | None
    nll: Spread
    nll_at_temperature: Spread | None
    nll_inverted: Spread | None
    ece_inverted: Spread | None
    nll_plain: Spread
    """of the cell without smoothing: what the inverse map should come back to"""

    @property
    def obeys(self) -> bool:
        """Whether the ECE is within a quarter of the expected one, and the temperature below 1."""
        near = abs(self.ece.mean - self.expected_ece) <= 0.25 * self.expected_ece
        return near and self.temperature is not None and self.temperature.mean < 1


def smoothed_cells(panel: Panel) -> list[Smoothed]:
    """Each smoothed cell beside the cell that differs from it in the smoothing alone."""
    if SMOOTHING not in panel.keys:
        return []
    found = []
    for cell in panel.cells:
        epsilon = panel.settings(cell)[SMOOTHING]
        plain = _without_smoothing(panel, cell)
        if not epsilon or plain is None:
            continue
        confidence, ece, nll, nll_plain = (
            spread(plain.runs, "confidence"),
            spread(cell.runs, "ece"),
            spread(cell.runs, "nll"),
            spread(plain.runs, "nll"),
        )
        if confidence is None or ece is None or nll is None or nll_plain is None:
            continue
        num_classes = cell.runs[0].figures["num_classes"]
        found.append(
            Smoothed(
                cell=cell,
                plain=plain,
                label_smoothing=epsilon,
                expected_ece=epsilon * (confidence.mean - 1 / num_classes),
                ece=ece,
                temperature=spread(cell.runs, "temperature"),
                nll=nll,
                nll_at_temperature=spread(cell.runs, "nll_at_temperature"),
                nll_inverted=_calibrated(cell.runs, "inverse smoothing", "nll"),
                ece_inverted=_calibrated(cell.runs, "inverse smoothing", "ece"),
                nll_plain=nll_plain,
            )
        )
    return found


def _without_smoothing(panel: Panel, cell: Cell) -> Cell | None:
    wanted = panel.settings(cell) | {SMOOTHING: 0.0}
    return next((other for other in panel.cells if panel.settings(other) == wanted), None)


def _calibrated(runs: Sequence[Run], calibrator: str, metric: str) -> Spread | None:
    values = [
        row[metric]
        for run in runs
        for row in run.figures.get("calibrators", [])
        if row["calibrator"] == calibrator and row.get(metric) is not None
    ]
    return _spread_of(values) if len(values) == len(runs) else None


@dataclass(frozen=True)
class Gaps:
    """A run on new text less the same run on its training text."""

    run: Run
    cell: Cell
    calibration: float
    """ECE on the split less ECE on train"""
    generalization: float
    """error rate on the split less error rate on train"""

    @property
    def within_bound(self) -> bool:
        """Whether the calibration gap is at most the generalization gap."""
        return self.calibration <= self.generalization


def gaps(panel: Panel) -> list[Gaps]:
    """The two gaps of every run that was scored on train too."""
    found = []
    for cell in panel.cells:
        for run in cell.runs:
            if run.on_train is None or run.figures["split"] == "train":
                continue
            train = _values(run.on_train, "ece", "accuracy")
            new = _values(run.figures, "ece", "accuracy")
            found.append(Gaps(run, cell, new[0] - train[0], train[1] - new[1]))
    return found


def _values(figures: dict[str, Any], *names: str) -> list[float]:
    return [float(figures[name]["value"]) for name in names]


def _spread_of(values: list[float]) -> Spread:
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else None
    return Spread(len(values), mean, deviation)
