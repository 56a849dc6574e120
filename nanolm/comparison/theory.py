"""Predictions of theory that the measured runs are compared with.

Label smoothing: the objective with weight ε on the uniform distribution is smallest at q = (1-ε) p + ε/V, for the p
that plain maximum likelihood would have found. Its confidence falls to (1-ε) E p_max + ε/V while its accuracy stays, so

    (accuracy - confidence) of q = (accuracy - confidence) of p + ε (E p_max - 1/V).

If p is calibrated, the first term is 0 and the second is the ECE of q, whose fitted T is below 1. The inverse map
p = (q - ε/V) / (1-ε) restores the NLL of p. (Szegedy et al. 2016, arXiv:1512.00567, section 7, for the objective.)

Generalization: calibration error on new data minus that on training data was found to be at most the error rate on new
data minus that on training data (Carrell et al. 2022, arXiv:2210.01964): an empirical bound, not a theorem.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from nanolm.comparison.cells import TEACHER, Cell, Panel
from nanolm.comparison.differences import SIGNIFICANCE, combine, over_seeds, over_text, why_no_text
from nanolm.comparison.runs import Run, values_of
from nanolm.metrics import Estimate
from nanolm.metrics.definitions import mean
from nanolm.metrics.intervals import Floats, holm

SMOOTHING = "loss.label_smoothing"
MARGIN = 0.01
"""How close to theory accuracy - confidence must be to count as equal; smoothing by 0.1 moves it by about 0.05."""


@dataclass(frozen=True)
class Smoothed:
    """A cell trained with label smoothing, its accuracy - confidence, and the prediction of theory for it.

    Attributes:
        cell, plain: the cell, and the one of the same seeds that differs in the smoothing alone, which it lacks.
        shift: ε (E p_max - 1/V), the mean over the plain cell's runs.
        expected, measured: accuracy - confidence of each seed.
        excess: the mean of measured - expected, with its variance over text and seeds.
        verdict: the result of the tests of the excess at 5 %, all cells of the panel together (Holm): ``within ±0.01``,
            also with ``, not 0``; ``differs`` from 0; ``open``; or ``-`` if the variance is not known.
    """

    cell: Cell
    plain: Cell
    shift: float
    expected: list[float]
    measured: list[float]
    excess: Estimate
    verdict: str = "-"

    @property
    def nll_inverted(self) -> list[float]:
        """NLL of each run with the smoothing inverted; empty if a run lacks it."""
        rows = [row for run in self.cell.runs for row in run.evaluation.calibrators]
        found = [row.nll for row in rows if row.calibrator == "inverse smoothing" and not math.isnan(row.nll)]
        return found if len(found) == len(self.cell.runs) else []


def smoothed_cells(panel: Panel) -> list[Smoothed]:
    """Return each smoothed cell that has a counterpart without smoothing, of the same seeds and otherwise equal."""
    found = []
    for cell in panel.cells:
        # With a teacher the optimum is another one.
        if not cell.settings.get(SMOOTHING) or cell.settings.get(TEACHER) is not None:
            continue
        wanted = cell.settings | {SMOOTHING: 0.0}
        plain = next((other for other in panel.cells if other.settings == wanted), None)
        if plain is None or [run.seed for run in cell.runs] != [run.seed for run in plain.runs]:
            continue
        runs = [*cell.runs, *plain.runs]
        if all(len(values_of(runs, metric)) == len(runs) for metric in ("nll", "accuracy", "confidence")):
            found.append(_smoothed(cell, plain))
    tested = [place for place, row in enumerate(found) if not math.isnan(row.excess.standard_error)]
    p_zero = holm([found[place].excess.p_value() for place in tested])
    p_margin = holm([found[place].excess.p_equivalence(MARGIN) for place in tested])
    for place, zero, margin in zip(tested, p_zero, p_margin, strict=True):
        verdict = "differs" if zero <= SIGNIFICANCE else "open"
        if margin <= SIGNIFICANCE:
            verdict = f"within ±{MARGIN:g}" + (", not 0" if zero <= SIGNIFICANCE else "")
        found[place] = replace(found[place], verdict=verdict)
    return found


def _smoothed(cell: Cell, plain: Cell) -> Smoothed:
    epsilon, count = cell.settings[SMOOTHING], len(cell.runs)
    shifts = [
        epsilon * (run.evaluation.metrics["confidence"].value - 1 / run.evaluation.num_classes) for run in plain.runs
    ]
    expected = [_underconfidence(run) + shift for run, shift in zip(plain.runs, shifts, strict=True)]
    measured = [_underconfidence(run) for run in cell.runs]
    excess = np.subtract(measured, expected).tolist()

    def excess_of_rows(rows: Floats) -> Floats:
        accuracy, confidence = mean("correct")(rows), mean("confidence")(rows)
        without = accuracy[..., count:] - (1 - epsilon) * confidence[..., count:]
        return np.asarray(accuracy[..., :count] - confidence[..., :count] - without)

    runs = [*cell.runs, *plain.runs]
    seeds = over_seeds([excess])
    text = None if why_no_text(runs, "accuracy") else over_text([excess], runs, excess_of_rows)
    sources = (text, seeds) if text and seeds else ()
    return Smoothed(cell, plain, sum(shifts) / count, expected, measured, combine(float(np.mean(excess)), *sources))


def _underconfidence(run: Run) -> float:
    metrics = run.evaluation.metrics
    return metrics["accuracy"].value - metrics["confidence"].value


@dataclass(frozen=True)
class Gap:
    """A run's metrics on new text minus those on its training text: ECE, and error rate."""

    cell: Cell
    seed: int
    calibration: float
    generalization: float


def gaps(panel: Panel) -> list[Gap]:
    """Return the gaps of every run that was scored on train as well, after the same step."""
    found = []
    for cell in panel.cells:
        for run in cell.runs:
            new, train = run.evaluation, run.on_train
            if train is None or new.split == "train" or train.step != new.step:
                continue
            values = [
                value for name in ("ece", "accuracy") for of in (new, train) if (value := of.value(name)) is not None
            ]
            if len(values) == 4:
                ece, ece_on_train, accuracy, accuracy_on_train = values
                found.append(Gap(cell, run.seed, ece - ece_on_train, accuracy_on_train - accuracy))
    return found
