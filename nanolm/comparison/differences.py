"""What a cell's runs say together, and how it differs from the baseline cell: one interval for text and seeds.

The text is a sample, and so are the seeds. A difference of means over seeds has two sources of variance that are
crossed, since every run is scored on the same text:

- the text: all runs of both cells on the same documents (or blocks), left out together, the trained models fixed;
- the seeds: Student's, of the differences between runs of equal seeds, or Welch's where no seeds are equal.

Both variances are added, with Satterthwaite's degrees of freedom. What a single run finds harder in a single document
(their interaction) is in both, so it is taken out of one. A panel shows many differences at once, so a difference is
called significant by its p-value after Holm's correction for all of them: where nothing differs, at most one panel in
twenty has a significant difference (benchmarks/comparison_errors.py). That two cells do not differ is never concluded
from a p-value; that they are equivalent only within a margin that the user states, by two one-sided tests (Schuirmann
1987).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanolm.comparison.cells import Cell, Panel
from nanolm.comparison.runs import Run
from nanolm.metrics.intervals import (
    Estimate,
    Interval,
    Statistic,
    holm,
    jackknife,
    mean_estimate,
    total_variance,
)
from nanolm.metrics.sums import AT_TEMPERATURE, STATISTICS, WIDTH, Array, column

METRICS = {
    "nll": "NLL",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "ece": "ECE",
    "ece_debiased": "ECE, debiased",
    "smooth_ece": "smooth ECE",
    "brier": "Brier",
    "entropy_gap": "entropy gap",
    "temperature": "T",
    "nll_at_temperature": "NLL at T",
}
"""What is compared, in order, with its name for people."""

NOT_TESTED = {
    "perplexity": "a function of the NLL",
    "ece": "noise raises it; see ECE, debiased",
    "smooth_ece": "it has no interval over the text",
}
"""Metrics whose difference is shown without an interval or a test, and why."""

PER_DOCUMENT: dict[str, Statistic] = {
    name: statistic
    for name, statistic in (STATISTICS | AT_TEMPERATURE | {"ece_debiased": STATISTICS["ece"]}).items()
    if name in METRICS and name not in NOT_TESTED
}
"""Functions of sums over documents. Debiased ECE varies with the text as ECE does."""

WITH_MARGIN = ("nll", "nll_at_temperature")
"""Metrics in nats per token, which the margin of equivalence is of."""

SIGNIFICANCE = 0.05
OTHER_TOKENS = "the runs were scored in other tokens or on another text"
OTHER_UNITS = "the runs' sums are over other units, as by another version: evaluate them again"
OTHER_TEXT = "the runs were not scored on the same text"
NO_SUMS = "documents-….npz of a run is missing, or of another evaluation"
NO_TEXT_INTERVAL = "no interval over the text: it is too short, or a value is not finite"
WITHOUT_TEXT = (OTHER_UNITS, OTHER_TEXT, NO_SUMS, NO_TEXT_INTERVAL)
ONE_SEED = "a cell has one seed, so that the variance between seeds is not known"


@dataclass(frozen=True)
class Spread:
    """A metric of a cell: mean and standard deviation over its seeds (None of a single one)."""

    num_runs: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """A cell's mean less the baseline cell's.

    Attributes:
        value: of the seeds that both cells have, where there are any.
        interval: 95 %, over text and seeds together; over one of them alone where ``reason`` says so; or none.
        text, seeds: the standard errors of the two sources, where known.
        p_value: adjusted for all differences of the panel; None where text or seeds are not known.
        p_equivalence: of the hypothesis that the difference is at least the margin, adjusted alike; None without one.
        reason: why there is no p-value.
        num_left_out: runs that play no part, since only one of the two cells has their seed.
    """

    value: float
    interval: Interval
    text: float | None = None
    seeds: float | None = None
    p_value: float | None = None
    p_equivalence: float | None = None
    reason: str = ""
    num_left_out: int = 0

    @property
    def is_significant(self) -> bool:
        """Whether the difference is told apart from 0 at 5 %, with all of its panel tested together."""
        return self.p_value is not None and self.p_value <= SIGNIFICANCE

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is within the margin, by two one-sided tests at 5 %."""
        return self.p_equivalence is not None and self.p_equivalence <= SIGNIFICANCE


def spread(runs: Sequence[Run], metric: str) -> Spread | None:
    """A metric over the runs that have it; None where none has."""
    values = [value for run in runs if (value := run.value(metric)) is not None]
    return spread_of(values) if values else None


def spread_of(values: Sequence[float]) -> Spread:
    """The mean of one value or more, and their standard deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(len(values), float(np.mean(values)), deviation)


@functools.cache
def differences(panel: Panel, margin: float | None = None) -> Mapping[tuple[Cell, str], Difference]:
    """How each other cell differs from the baseline cell in each metric, tested together.

    Args:
        margin: of equivalence in NLL, nats per token; None for no such test.

    Returns:
        by cell and metric. A metric that either cell lacks is left out, and so are those per token of runs that cut the
        text into other tokens.
    """
    found: dict[tuple[Cell, str], Difference] = {}
    tests: dict[tuple[Cell, str], Estimate] = {}
    for cell in panel.cells:
        for metric in METRICS if cell is not panel.baseline else ():
            made = _difference(cell, panel.baseline, metric)
            if made is not None:
                found[cell, metric], whole = made
                if whole is not None:
                    tests[cell, metric] = whole
    # Bits per byte of equal tokens are the NLL in another unit: one hypothesis, tested once.
    family = [(cell, metric) for cell, metric in tests if metric != "bits_per_byte" or (cell, "nll") not in tests]
    adjusted = dict(zip(family, holm([tests[key].p_value() for key in family]), strict=True))
    for cell, metric in tests:
        p_value = adjusted.get((cell, metric), adjusted.get((cell, "nll")))
        found[cell, metric] = replace(found[cell, metric], p_value=p_value)
    if margin is not None:
        pairs = [key for key in family if key[1] in WITH_MARGIN]
        for key, p_value in zip(pairs, holm([p_of_margin(tests[key], margin) for key in pairs]), strict=True):
            found[key] = replace(found[key], p_equivalence=p_value)
    return found


def num_tests(panel: Panel, margin: float | None = None) -> int:
    """How many hypotheses the p-values of ``differences`` are adjusted for."""
    found = differences(panel, margin)
    tested = {key for key, difference in found.items() if difference.p_value is not None}
    return sum(metric != "bits_per_byte" or (cell, "nll") not in tested for cell, metric in tested)


def over_seeds(per_seed: Sequence[Sequence[float]]) -> Estimate:
    """What the seeds add to the variance of a sum of means over them; ``per_seed`` holds the values of each mean."""
    return total_variance(0.0, [mean_estimate(values) for values in per_seed])


def over_text(
    sizes: Sequence[int], runs: Sequence[Run], statistic: Statistic, signs: Sequence[int] = (1,)
) -> Estimate | None:
    """What the text adds to the variance of a sum of means over seeds; None for a text that is too short.

    The covariance C of the seeds' values over the text has, on average, the variance of the documents' levels, which
    all seeds share, off its diagonal; the interaction of seeds and documents is on the diagonal alone, and in the
    spread of the seeds already.

    Args:
        sizes: how many values each mean is of; the means are added up with their ``signs``.
        runs: all that play a part, with their units, scored on one text.
        statistic: (..., runs, WIDTH) sums to (..., n) values, those of all means one after the other.
    """
    sums = np.nan_to_num(np.concatenate([run.units for run in runs if run.units is not None], axis=1))
    weights = np.concatenate([np.full(size, sign / size) for size, sign in zip(sizes, signs, strict=True)])
    found = jackknife(
        lambda totals: statistic(totals.reshape(*totals.shape[:-1], len(runs), WIDTH)),
        sums,
        weights,
        blocks=runs[0].blocks,
    )
    if np.isnan(found.covariance).any():
        return None
    variance, first = float(weights @ found.covariance @ weights), 0
    for size in sizes:
        own = found.covariance[first : first + size, first : first + size]
        first += size
        if size > 1:
            variance -= float(np.diag(own).mean() - own.mean()) / (size - 1)
    return Estimate(0.0, math.sqrt(max(variance, 0.0)), found.degrees_of_freedom, found.num_units)


def _difference(cell: Cell, baseline: Cell, metric: str) -> tuple[Difference, Estimate | None] | None:
    """The difference, and what is tested of it where text and seeds are known."""
    ours, theirs = (_with_metric(one, metric) for one in (cell, baseline))
    if not ours or not theirs:
        return None
    common = sorted(ours.keys() & theirs.keys())
    paired = len(common) >= 2 or ours.keys() == theirs.keys()
    left, right = ([of[seed] for seed in (common if paired else of)] for of in (ours, theirs))
    value = _mean(left, metric) - _mean(right, metric)
    num_left_out = len(ours) + len(theirs) - 2 * len(common) if paired else 0
    reason = why_no_text((*left, *right), metric)
    if reason == OTHER_TOKENS and metric != "bits_per_byte":
        return None
    if metric in NOT_TESTED:
        return Difference(
            value, Interval(value, None, None), reason=NOT_TESTED[metric], num_left_out=num_left_out
        ), None
    seeds, text = _two_sources(left, right, metric, paired=paired, known_text=not reason)
    if text is None and not reason:
        reason = NO_TEXT_INTERVAL
    known = [source for source in (text, seeds) if source is not None]
    whole = total_variance(value, known) if known else None
    return (
        Difference(
            value,
            whole.interval if whole else Interval(value, None, None),
            text=text.standard_error if text else None,
            seeds=seeds.standard_error if seeds else None,
            reason=reason or ("" if seeds else ONE_SEED),
            num_left_out=num_left_out,
        ),
        whole if text and seeds else None,
    )


def _with_metric(cell: Cell, metric: str) -> dict[int, Run]:
    return {seed: run for seed, run in cell.by_seed().items() if run.value(metric) is not None}


def _mean(runs: Sequence[Run], metric: str) -> float:
    return float(np.mean([run.value(metric) for run in runs]))


def _two_sources(
    ours: Sequence[Run], theirs: Sequence[Run], metric: str, paired: bool, known_text: bool
) -> tuple[Estimate | None, Estimate | None]:
    """The seeds' and the text's share of the variance of a difference; None where it cannot be estimated."""
    values = [[_mean([run], metric) for run in runs] for runs in (ours, theirs)]
    per_seed, signs = ([[a - b for a, b in zip(*values, strict=True)]], (1,)) if paired else (values, (1, -1))
    seeds = over_seeds(per_seed)
    if not known_text:
        text = None
    elif metric == "temperature":
        text = _over_calibration_text(ours, theirs)
    else:
        function = PER_DOCUMENT[metric]

        def of_seeds(totals: Array) -> Array:
            each = function(totals)
            return each[..., : len(ours)] - each[..., len(ours) :] if paired else each

        text = over_text([len(values) for values in per_seed], (*ours, *theirs), of_seeds, signs)
    return (None if math.isnan(seeds.standard_error) else seeds), text


def _over_calibration_text(ours: Sequence[Run], theirs: Sequence[Run]) -> Estimate | None:
    """From the intervals of the fitted temperatures.

    Errors of one text are taken for equal among the runs of a cell and for independent between the cells: too much
    rather than too little, since the cells share the text.
    """
    widths = [[run.half_width("temperature") for run in runs] for runs in (ours, theirs)]
    if any(width is None for of_cell in widths for width in of_cell):
        return None
    # An interval is 1.96 standard errors wide or, with few documents, more of them: then this is too large.
    errors = [float(np.mean([width for width in of_cell if width is not None])) / 1.96 for of_cell in widths]
    return Estimate(0.0, math.hypot(*errors), math.inf, 0)


def p_of_margin(found: Estimate, margin: float) -> float:
    """Of two one-sided tests: that the difference is at least the margin on either side."""
    if abs(found.value) >= margin:
        return 1.0
    return found.p_value(math.copysign(margin, found.value)) / 2


def why_no_text(runs: Sequence[Run], metric: str) -> str:
    """Why the text's share of the variance cannot be estimated; empty where it can."""
    known = [run.units for run in runs if run.units is not None]
    texts = {run.figures.get("corpus") for run in runs}
    # Then the units are the same too; a seed may deal a unit's examples more often than another seed.
    same_text = len(texts) == 1 and None not in texts
    same_units = len({(len(run.units), run.blocks) for run in runs if run.units is not None}) <= 1
    if not same_units or not (same_text or _equal(known, "tokens")):
        if same_text:
            return OTHER_UNITS
        if metric != "bits_per_byte" or not same_units or not _equal(known, "bytes"):
            return OTHER_TOKENS
    elif len(texts) > 1:
        return OTHER_TEXT
    if metric == "temperature" or metric in NOT_TESTED:
        return ""
    if len(known) < len(runs):
        return NO_SUMS
    if metric in AT_TEMPERATURE and any(np.isnan(column(unit, metric)).any() for unit in known):
        return "a run has no temperature"
    return ""


def _equal(units: Sequence[Array], name: str) -> bool:
    """Whether runs agree in a column of all their units."""
    return all(np.array_equal(column(unit, name), column(units[0], name)) for unit in units)
