"""What a cell's runs say together, and how it differs from the baseline cell, with two kinds of doubt.

The text is a sample, and so are the seeds. So a difference of the means over seeds has

- an interval over documents (or blocks): all runs of both cells on the same resampled text, trained models fixed;
- an interval over seeds: Student's t of the differences between runs of the same seed, the text fixed.

It is called clear where both leave 0 out on the same side. These are intervals of one difference each; among twenty
that are all 0, one leaves 0 out by chance.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nanolm.calibration.intervals import Interval, Statistic, bootstrap_interval
from nanolm.comparison.cells import Cell
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
OTHER_TOKENS = "the runs were scored in other tokens or on another text"


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
    ``num_left_out`` are seeds that only one of the two cells has.
    """

    value: float
    documents: Interval
    seeds: Interval
    reason: str = ""
    num_left_out: int = 0

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


@functools.cache
def difference(cell: Cell, baseline: Cell, metric: str) -> Difference | None:
    """How a figure of a cell differs from the baseline cell's, over the seeds that both have it for.

    Where seeds are not paired, all runs of both cells are compared, and there is no interval over seeds. None where
    either lacks the figure, and for figures per token of runs that cut the text into other tokens.
    """
    ours, theirs = (_with_figure(one, metric) for one in (cell, baseline))
    if not ours or not theirs:
        return None
    common = sorted(ours.keys() & theirs.keys())
    left = [ours[seed] for seed in common or ours]
    right = [theirs[seed] for seed in common or theirs]
    value = _mean(left, metric) - _mean(right, metric)
    reason = _unpaired(left, right, metric)
    if reason == OTHER_TOKENS and metric != "bits_per_byte":
        return None
    documents = Interval(value, None, None) if reason else _over_documents(left, right, metric)
    seeds = Interval(value, None, None)
    if common:
        seeds = over_seeds([_mean([a], metric) - _mean([b], metric) for a, b in zip(left, right, strict=True)])
    return Difference(value, documents, seeds, reason, max(len(ours), len(theirs)) - len(common))


def _with_figure(cell: Cell, metric: str) -> dict[int, Run]:
    return {seed: run for seed, run in cell.by_seed().items() if run.value(metric) is not None}


def _mean(runs: Sequence[Run], metric: str) -> float:
    return float(np.mean([run.value(metric) for run in runs]))


def _unpaired(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> str:
    """Why there is no interval over documents; empty where there is one."""
    runs = (*ours, *theirs)
    units = [run.units for run in runs]
    known = [unit for unit in units if unit is not None]
    texts = {run.figures.get("corpus") for run in runs}
    # Then the units are the same too; a seed may deal a unit's examples more often than another seed.
    same_text = len(texts) == 1 and None not in texts
    if len({len(unit) for unit in known}) > 1 or not (same_text or _equal(known, "tokens")):
        if metric != "bits_per_byte" or not _equal(known, "bytes"):
            return OTHER_TOKENS
    elif len(texts) > 1:
        return "the runs were not scored on the same text"
    if metric not in PER_DOCUMENT:
        return NOT_OF_SUMS
    if len(known) < len(units):
        return "documents-….npz of a run is missing, or of another evaluation"
    if metric in AT_TEMPERATURE and any(np.isnan(column(unit, metric)).any() for unit in known):
        return "a run has no temperature"
    return ""


def _equal(units: Sequence[Array], name: str) -> bool:
    """Whether runs agree in a column of all their units."""
    return all(np.array_equal(column(unit, name), column(units[0], name)) for unit in units)


def _over_documents(ours: Sequence[Run], theirs: Sequence[Run], metric: str) -> Interval:
    statistic, num_ours = PER_DOCUMENT[metric], len(ours)
    sums = np.concatenate([run.units for run in (*ours, *theirs) if run.units is not None], axis=1)

    def of_both(totals: Array) -> Array:
        values = statistic(totals.reshape(*totals.shape[:-1], -1, WIDTH))  # (..., runs)
        return np.asarray(values[..., :num_ours].mean(axis=-1) - values[..., num_ours:].mean(axis=-1))

    return bootstrap_interval(of_both, np.nan_to_num(sums))
