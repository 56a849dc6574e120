"""How a cell differs from the baseline cell: one interval for text and seeds.

The text is a sample, and so are the seeds. A difference of means over seeds has two sources of variance that are
crossed, since every run is scored on the same text:

- the text: all runs of both cells on the same documents (or blocks), left out together, the trained models fixed;
- the seeds: Student's variance of the differences between runs of equal seeds, or Welch's if no seeds are equal.

Both variances are added, with Satterthwaite's degrees of freedom. What a single run finds harder in a single document
(their interaction) is in both, so it is subtracted from one. A panel shows many differences at once, so a difference is
called significant by its p-value after Holm's correction for all of them: if nothing differs, at most one panel in
twenty has a significant difference (benchmarks/comparison_errors.py). A p-value never shows that two cells are equal.
That they are equivalent is shown only within a margin that the user states, by two one-sided tests (Schuirmann 1987).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanolm.comparison.cells import Cell, Panel
from nanolm.comparison.runs import Run, values_of
from nanolm.metrics import METRICS, WIDTH, Estimate, column
from nanolm.metrics.intervals import Floats, Statistic, holm, jackknife, mean_estimate, total_variance

COMPARED = tuple(name for name in METRICS if name not in ("confidence", "entropy", "calibration_error", "refinement"))
"""The metrics that are compared, in the order of tables."""

NOT_TESTED = {
    "perplexity": "a function of the NLL",
    "ece": "noise raises it; see ECE, debiased",
    "smooth_ece": "it has no interval over the text",
}
"""Metrics whose difference is shown without an interval or a test, and why."""

WITH_MARGIN = ("nll", "nll_at_temperature")
"""Metrics in nats per token, to which the margin of equivalence applies."""

SIGNIFICANCE = 0.05
OTHER_TOKENS = "the runs were scored with different tokens or on different text"
OTHER_UNITS = "the runs' sums are over other units, as by another version: evaluate them again"
OTHER_TEXT = "the runs were not scored on the same text"
NO_SUMS = "documents-….npz of a run is missing, or belongs to another evaluation"
NO_TEXT_INTERVAL = "no interval over the text: it is too short, or a value is not finite"
WITHOUT_TEXT = (OTHER_UNITS, OTHER_TEXT, NO_SUMS, NO_TEXT_INTERVAL)
ONE_SEED = "a cell has one seed, so that the variance between seeds is not known"


@dataclass(frozen=True)
class Difference:
    """The mean of a cell minus that of the baseline cell.

    Attributes:
        estimate: with the standard error of text and seeds together, or of one of them, or NaN; see ``reason``. It is
            over the seeds that both cells have, unless they have none or one in common.
        text, seeds: the standard errors of the two sources; None if unknown.
        p_value: adjusted for all differences of the panel; None unless text and seeds are known.
        p_equivalence: of the hypothesis that the difference is at least the margin, adjusted in the same way; None
            without a margin.
        reason: why there is no p-value; empty if there is one.
        num_left_out: runs that are not used because only one of the two cells has their seed.
    """

    estimate: Estimate
    text: float | None = None
    seeds: float | None = None
    p_value: float | None = None
    p_equivalence: float | None = None
    reason: str = ""
    num_left_out: int = 0

    @property
    def is_tested(self) -> bool:
        """Whether the variance over the text and that over the seeds are both known."""
        return self.text is not None and self.seeds is not None

    @property
    def is_significant(self) -> bool:
        """Whether the difference is not 0, at 5 % for all differences of the panel together."""
        return self.p_value is not None and self.p_value <= SIGNIFICANCE

    @property
    def is_equivalent(self) -> bool:
        """Whether the difference is within the margin, by two one-sided tests at 5 %."""
        return self.p_equivalence is not None and self.p_equivalence <= SIGNIFICANCE


Groups = Sequence[Sequence[float]]
Key = tuple[Cell, str]
"""A cell and a metric."""
Differences = Mapping[Key, Difference]


def differences(panel: Panel, margin: float | None = None) -> Differences:
    """Return how each other cell differs from the baseline cell in each metric, tested together.

    A metric that one of the cells lacks is left out, and so are metrics per token of runs that split the text into
    other tokens.

    Args:
        margin: of equivalence in NLL, nats per token; None for no such test.
    """
    found = {
        (cell, metric): difference
        for cell in panel.cells
        for metric in COMPARED
        if cell is not panel.baseline and (difference := _difference(cell, panel.baseline, metric)) is not None
    }
    family = hypotheses(found)
    adjusted = dict(zip(family, holm([found[key].estimate.p_value() for key in family]), strict=True))
    for (cell, metric), difference in found.items():
        if difference.is_tested:
            p_value = adjusted.get((cell, metric), adjusted.get((cell, "nll")))
            found[cell, metric] = replace(difference, p_value=p_value)
    if margin is not None:
        keys = [key for key in family if key[1] in WITH_MARGIN]
        p_values = holm([found[key].estimate.p_equivalence(margin) for key in keys])
        for key, p_value in zip(keys, p_values, strict=True):
            found[key] = replace(found[key], p_equivalence=p_value)
    return found


def hypotheses(found: Differences) -> list[Key]:
    """Return the differences that are tested, without those that repeat another.

    Bits per byte of equal tokens are the NLL in another unit: one hypothesis, tested once.
    """
    tested = [key for key, difference in found.items() if difference.is_tested]
    return [(cell, metric) for cell, metric in tested if metric != "bits_per_byte" or (cell, "nll") not in tested]


def _difference(cell: Cell, baseline: Cell, metric: str) -> Difference | None:
    ours, theirs = (
        {run.seed: run for run in of.runs if run.evaluation.value(metric) is not None} for of in (cell, baseline)
    )
    if not ours or not theirs:
        return None
    common = sorted(ours.keys() & theirs.keys())
    paired = len(common) >= 2 or ours.keys() == theirs.keys()
    left, right = ([of[seed] for seed in (common if paired else of)] for of in (ours, theirs))
    num_left_out = len(ours) + len(theirs) - 2 * len(common) if paired else 0
    reason = why_no_text([*left, *right], metric)
    if reason == OTHER_TOKENS and metric != "bits_per_byte":
        return None
    values = [values_of(left, metric), values_of(right, metric)]
    value = float(np.mean(values[0])) - float(np.mean(values[1]))
    if metric in NOT_TESTED:
        return Difference(combine(value), reason=NOT_TESTED[metric], num_left_out=num_left_out)
    groups = [np.subtract(values[0], values[1]).tolist()] if paired else values
    text, seeds = None, over_seeds(groups)
    if metric == "temperature" and not reason:
        text = _over_calibration_text(left, right)
    elif not reason:
        # Debiased ECE varies with the text as ECE does.
        of_rows = METRICS["ece" if metric == "ece_debiased" else metric].of_rows
        assert of_rows is not None, metric

        def of_groups(rows: Floats) -> Floats:
            each = of_rows(rows)
            return each[..., : len(left)] - each[..., len(left) :] if paired else each

        text = over_text(groups, [*left, *right], of_groups)
    if text is None and not reason:
        reason = NO_TEXT_INTERVAL
    return Difference(
        combine(value, text, seeds),
        text=text.standard_error if text else None,
        seeds=seeds.standard_error if seeds else None,
        reason=reason or ("" if seeds else ONE_SEED),
        num_left_out=num_left_out,
    )


def combine(value: float, *sources: Estimate | None) -> Estimate:
    """Return an estimate with the variances of those sources that are known; without any, its error is NaN."""
    known = [source for source in sources if source is not None]
    return total_variance(value, known) if known else Estimate(value, math.nan, 1.0)


def over_seeds(groups: Groups) -> Estimate | None:
    """Return the error over the seeds of one group's mean, or of the difference of two; None if one has one seed."""
    if any(len(group) < 2 for group in groups):
        return None
    return total_variance(0.0, [mean_estimate(group) for group in groups])


def over_text(groups: Groups, runs: Sequence[Run], statistic: Statistic) -> Estimate | None:
    """Return the error over the text of one group's mean, or of the difference of two; None if the text is too short.

    The covariance C of the seeds' values over the text has, on average, the variance of the documents' levels, which
    all seeds share, off its diagonal. The interaction of seeds and documents is on the diagonal alone, and in the
    variance over seeds already, so it is subtracted.

    Args:
        groups: one or two, with a value for each seed.
        runs: the runs of all values, with their units, scored on one text.
        statistic: (..., runs, WIDTH) sums to the (..., n) values of all groups, one after the other.
    """
    sums = np.nan_to_num(np.concatenate([run.units for run in runs if run.units is not None], axis=1))
    weights = np.concatenate(
        [np.full(len(group), sign / len(group)) for group, sign in zip(groups, (1, -1), strict=False)]
    )

    def of_totals(totals: Floats) -> Floats:
        return statistic(totals.reshape(*totals.shape[:-1], len(runs), WIDTH))

    found = jackknife(of_totals, sums, weights, blocks=runs[0].blocks)
    if np.isnan(found.covariance).any():
        return None
    variance, first = float(weights @ found.covariance @ weights), 0
    for group in groups:
        own = slice(first, first + len(group))
        covariance, first = found.covariance[own, own], own.stop
        if len(group) > 1:
            variance -= float(np.diag(covariance).mean() - covariance.mean()) / (len(group) - 1)
    return Estimate(0.0, math.sqrt(max(variance, 0.0)), found.degrees_of_freedom)


def _over_calibration_text(*cells: Sequence[Run]) -> Estimate | None:
    """Return the error over the text of a difference of fitted temperatures, from their intervals.

    Errors from one text are taken as equal among the runs of a cell and as independent between the cells. This is too
    much rather than too little, since the cells share the text.
    """
    errors = []
    for runs in cells:
        found = [run.evaluation.metrics["temperature"] for run in runs]
        widths = [(one.high - one.low) / 2 for one in found if one.low is not None and one.high is not None]
        if len(widths) < len(runs):
            return None
        # An interval is 1.96 standard errors wide or, with few documents, more of them: then this is too large.
        errors.append(float(np.mean(widths)) / 1.96)
    return Estimate(0.0, math.hypot(*errors), math.inf)


def why_no_text(runs: Sequence[Run], metric: str) -> str:
    """Return the reason why the error over the text cannot be estimated; empty if it can."""
    units = [run.units for run in runs if run.units is not None]
    texts = {run.evaluation.corpus for run in runs}
    same_text = len(texts) == 1 and None not in texts
    same_units = len({(len(run.units), run.blocks) for run in runs if run.units is not None}) <= 1

    def agree_in(name: str) -> bool:
        return same_units and all(np.array_equal(column(one, name), column(units[0], name)) for one in units)

    # The units of one text are the same, even if a seed deals a unit's examples more often than another seed does.
    if same_text and not same_units:
        return OTHER_UNITS
    if not same_text and not agree_in("tokens"):
        if metric != "bits_per_byte" or not agree_in("bytes"):
            return OTHER_TOKENS
    elif len(texts) > 1:
        return OTHER_TEXT
    if metric == "temperature" or metric in NOT_TESTED:
        return ""
    if len(units) < len(runs):
        return NO_SUMS
    if metric == "nll_at_temperature" and any(np.isnan(column(one, metric)).any() for one in units):
        return "a run has no temperature"
    return ""
