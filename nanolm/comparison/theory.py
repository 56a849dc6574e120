"""Predictions that the measured runs must face.

Label smoothing: the objective with weight ε on the uniform distribution is smallest at q = (1-ε) p + ε/V, for the p
that plain maximum likelihood would have found. Its confidence falls to (1-ε) E p_max + ε/V while its accuracy stays, so

    (accuracy - confidence) of q = (accuracy - confidence) of p + ε (E p_max - 1/V).

Where p is calibrated the first term is 0 and the second is the ECE of q, whose fitted T is below 1; and the inverse
map p = (q - ε/V) / (1-ε) brings back the NLL of p. (Szegedy et al. 2016, arXiv:1512.00567, section 7, for the
objective.)

Generalization: calibration error on new data less that on training data was found to be at most the error rate on new
data less that on training data (Carrell et al. 2022, arXiv:2210.01964): an empirical bound, not a theorem.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanolm.comparison.cells import TEACHER, Cell, Panel
from nanolm.comparison.differences import (
    SIGNIFICANCE,
    Spread,
    over_seeds,
    over_text,
    p_of_margin,
    spread,
    spread_of,
    why_no_text,
)
from nanolm.comparison.runs import Run
from nanolm.metrics.intervals import Estimate, Statistic, holm, total_variance
from nanolm.metrics.sums import STATISTICS, Array

SMOOTHING = "loss.label_smoothing"
MARGIN = 0.01
"""Of accuracy - confidence, within which a model counts as one that obeys the theory; a model smoothed by 0.1 moves
by some 0.05."""


@dataclass(frozen=True)
class Smoothed:
    """A cell trained with label smoothing beside the one that differs in nothing else. NLL in nats.

    ``underconfidence`` is accuracy - confidence, ``excess`` what was measured of it less what was expected from the
    run of the same seed without smoothing, with its variance over text and seeds.
    """

    cell: Cell
    ece_if_calibrated: float
    """ε (E p_max - 1/V)"""
    ece: Spread
    expected_underconfidence: Spread
    underconfidence: Spread
    excess: Estimate
    temperature: Spread | None
    nll: Spread
    nll_at_temperature: Spread | None
    nll_inverted: Spread | None
    nll_plain: Spread
    """of the cell without smoothing: what the inverse map should come back to"""
    p_zero: float = math.nan
    p_margin: float = math.nan
    """of the hypotheses that the excess is 0, and that it is at least ``MARGIN``; adjusted for all cells (Holm)"""

    @property
    def verdict(self) -> str:
        """What the excess shows at 5 %, all cells of the panel tested together."""
        if math.isnan(self.p_zero):
            return "-"
        differs, within = self.p_zero <= SIGNIFICANCE, self.p_margin <= SIGNIFICANCE
        if within:
            return f"within ±{MARGIN:g}" + (", not 0" if differs else "")
        return "differs" if differs else "open"


def smoothed_cells(panel: Panel) -> list[Smoothed]:
    """Each smoothed cell that has a cell beside it without smoothing and otherwise equal, of the same seeds."""
    found = []
    for cell in panel.cells:
        epsilon, plain = cell.settings.get(SMOOTHING), _without_smoothing(panel, cell)
        if not epsilon or plain is None or cell.settings.get(TEACHER) is not None:
            continue  # beside a teacher the optimum is another one
        measured = [*cell.runs, *plain.runs]
        if cell.by_seed().keys() == plain.by_seed().keys() and all(run.value("nll") is not None for run in measured):
            found.append(_smoothed(cell, plain, epsilon))
    tested = [row.excess for row in found if not math.isnan(row.excess.standard_error)]
    p_zero, p_margin = (iter(holm(values)) for values in _p_values(tested))
    return [
        row if math.isnan(row.excess.standard_error) else replace(row, p_zero=next(p_zero), p_margin=next(p_margin))
        for row in found
    ]


def _p_values(excesses: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [excess.p_value() for excess in excesses], [p_of_margin(excess, MARGIN) for excess in excesses]


def _smoothed(cell: Cell, plain: Cell, epsilon: float) -> Smoothed:
    expected, measured, added = [], [], []
    for ours, theirs in zip(cell.runs, plain.runs, strict=True):  # both in the order of their seeds
        accuracy, confidence = _values(theirs.figures, "accuracy", "confidence")
        added.append(epsilon * (confidence - 1 / theirs.figures["num_classes"]))
        expected.append(accuracy - confidence + added[-1])
        accuracy, confidence = _values(ours.figures, "accuracy", "confidence")
        measured.append(accuracy - confidence)

    def excess_of_seeds(totals: Array) -> Array:
        ours, theirs = totals[..., : len(cell.runs), :], totals[..., len(cell.runs) :, :]
        accuracy, confidence = STATISTICS["accuracy"], STATISTICS["confidence"]
        without = accuracy(theirs) - (1 - epsilon) * confidence(theirs)
        return np.asarray(accuracy(ours) - confidence(ours) - without)

    excess = [m - e for m, e in zip(measured, expected, strict=True)]
    nll, ece, nll_plain = spread(cell.runs, "nll"), spread(cell.runs, "ece"), spread(plain.runs, "nll")
    assert nll is not None, "its runs were looked at"
    assert ece is not None, "what has an NLL has an ECE"
    assert nll_plain is not None, "its runs were looked at"
    return Smoothed(
        cell=cell,
        ece_if_calibrated=sum(added) / len(added),
        ece=ece,
        expected_underconfidence=spread_of(expected),
        underconfidence=spread_of(measured),
        excess=_with_variance(excess, (*cell.runs, *plain.runs), excess_of_seeds),
        temperature=spread(cell.runs, "temperature"),
        nll=nll,
        nll_at_temperature=spread(cell.runs, "nll_at_temperature"),
        nll_inverted=_calibrated(cell.runs, "inverse smoothing", "nll"),
        nll_plain=nll_plain,
    )


def _with_variance(excess: Sequence[float], runs: Sequence[Run], statistic: Statistic) -> Estimate:
    value = float(np.mean(excess))
    if why_no_text(runs, "accuracy"):
        return Estimate(value, math.nan, 0.0, 0)
    text = over_text([len(excess)], runs, statistic)
    return Estimate(value, math.nan, 0.0, 0) if text is None else total_variance(value, (over_seeds([excess]), text))


def _without_smoothing(panel: Panel, cell: Cell) -> Cell | None:
    """The cell that differs in the smoothing and in nothing else, shown in the tables or not."""
    wanted = cell.settings | {SMOOTHING: 0.0}
    return next((other for other in panel.cells if other.settings == wanted), None)


def _calibrated(runs: Sequence[Run], calibrator: str, metric: str) -> Spread | None:
    values = [
        row[metric]
        for run in runs
        for row in run.figures.get("calibrators", [])
        if row["calibrator"] == calibrator and row.get(metric) is not None
    ]
    return spread_of(values) if len(values) == len(runs) else None


@dataclass(frozen=True)
class Gaps:
    """A run on new text less the same run on its training text."""

    run: Run
    cell: Cell
    calibration: float
    """ECE on the split less ECE on train"""
    generalization: float
    """error rate on the split less error rate on train"""


def gaps(panel: Panel) -> list[Gaps]:
    """The two gaps of every run that was scored on train too."""
    found = []
    for cell in panel.cells:
        for run in cell.runs:
            if run.on_train is None or run.figures["split"] == "train" or run.on_train["step"] != run.figures["step"]:
                continue
            train = _values(run.on_train, "ece", "accuracy")
            new = _values(run.figures, "ece", "accuracy")
            found.append(Gaps(run, cell, new[0] - train[0], train[1] - new[1]))
    return found


def _values(figures: dict[str, Any], *names: str) -> list[float]:
    return [float(figures[name]["value"]) for name in names]
