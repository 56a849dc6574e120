"""What a cell's runs say together, and how it differs from the baseline cell, with two kinds of doubt.

The text is a sample, and so are the seeds. So a difference of the means over seeds has

- an interval over documents (or blocks): all runs of both cells on the same resampled text, trained models fixed;
- an interval over seeds: Student's t of the differences between runs of the same seed, the text fixed.

It is called clear where both leave 0 out on the same side. These are intervals of one difference each; among twenty
that are all 0, one leaves 0 out by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nanolm.calibration.intervals import Interval, Statistic, bootstrap_interval
from nanolm.comparison.cells import Cell, Panel
from nanolm.comparison.runs import Run
from nanolm.evaluation.sums import AT_TEMPERATURE, STATISTICS, WIDTH, Array, column

METRICS = {
    "nll": "NLL",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "ece": "ECE",
    "smooth_ece": "smooth ECE",
    "brier": "Brier",
    "entropy_gap": "entropy gap",
    "temperature": "T",
    "nll_at_temperature": "NLL at T",
}
"""What is compared, in order, with its name for people."""

PER_DOCUMENT: dict[str, Statistic] = {
    name: statistic for name, statistic in (STATISTICS | AT_TEMPERATURE).items() if name in METRICS
}

NOT_OF_SUMS = "not a function of sums over documents"


@dataclass(frozen=True)
class Spread:
    """A figure of a cell: mean and standard deviation over its seeds (None of a single one)."""

    num_runs: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """A cell's mean less the baseline cell's.

    ``documents`` and ``seeds`` are 95 % intervals; without bounds where there is none, with ``reason`` in words.
    """

    value: float
    documents: Interval
    seeds: Interval
    reason: str = ""

    @property
    def is_clear(self) -> bool:
        """Whether both intervals leave 0 out on the same side; that over seeds alone where there can be no other."""
        intervals = (self.seeds,) if self.reason == NOT_OF_SUMS else (self.documents, self.seeds)
        bounds = [(interval.low, interval.high) for interval in intervals]
        return all(low is not None and low > 0 for low, _ in bounds) or all(
            high is not None and high < 0 for _, high in bounds
        )


def spread(runs: Sequence[Run], metric: str) -> Spread | None:
    """A figure over the runs that have it; None where none has."""
    values = [value for run in runs if (value := run.value(metric)) is not None]
    return spread_of(values) if values else None


def spread_of(values: Sequence[float]) -> Spread:
    """The mean of one value or more, and their standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(len(values), float(np.mean(values)), deviation)


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of a mean over seeds; without bounds below two of them."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def difference(cell: Cell, baseline: Cell, metric: str) -> Difference | None:
    """How a figure of a cell differs from the baseline cell's; None where either lacks it."""
    ours, theirs = spread(cell.runs, metric), spread(baseline.runs, metric)
    if ours is None or theirs is None:
        return None
    value = ours.mean - theirs.mean
    reason = _unpaired(cell.runs, baseline.runs, metric)
    documents = Interval(value, None, None) if reason else _over_documents(cell.runs, baseline.runs, metric)
    return Difference(value, documents, _over_seeds(cell, baseline, metric, value), reason)


def _unpaired(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> str:
    """Why there is no interval over documents; empty where there is one."""
    if metric not in PER_DOCUMENT:
        return NOT_OF_SUMS
    units = [run.units for run in (*ours, *theirs)]
    if any(unit is None for unit in units):
        return "documents-….npz of a run is missing"
    first, *others = [unit for unit in units if unit is not None]
    if metric in AT_TEMPERATURE and any(np.isnan(column(unit, metric)).any() for unit in (first, *others)):
        return "a run has no temperature"
    # Other tokens on the same documents can be compared per byte alone.
    same = "bytes" if metric == "bits_per_byte" else "tokens"
    if any(
        len(other) != len(first) or not np.array_equal(column(other, same), column(first, same)) for other in others
    ):
        return "the runs were not scored on the same text in the same tokens"
    return ""


def _over_documents(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> Interval:
    statistic, num_ours = PER_DOCUMENT[metric], len(ours)
    sums = np.concatenate([run.units for run in (*ours, *theirs) if run.units is not None], axis=1)

    def of_both(totals: Array) -> Array:
        values = statistic(totals.reshape(*totals.shape[:-1], -1, WIDTH))  # (..., runs)
        return np.asarray(values[..., :num_ours].mean(axis=-1) - values[..., num_ours:].mean(axis=-1))

    return bootstrap_interval(of_both, np.nan_to_num(sums))


def _over_seeds(cell: Cell, baseline: Cell, metric: str, value: float) -> Interval:
    ours, theirs = cell.by_seed(), baseline.by_seed()
    pairs = [(ours[seed].value(metric), theirs[seed].value(metric)) for seed in sorted(ours.keys() & theirs.keys())]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    return over_seeds(found) if found and len(found) == max(len(ours), len(theirs)) else Interval(value, None, None)


def differences(panel: Panel, metric: str) -> list[Difference | None]:
    """The differences of all cells of a panel; None for the baseline itself."""
    return [None if cell is panel.baseline else difference(cell, panel.baseline, metric) for cell in panel.cells]
