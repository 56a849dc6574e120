"""Standard errors and 95 % intervals of metrics, from units that are nearly independent of each other.

Tokens of one document depend on each other, so an interval from the spread of tokens is far too narrow. A unit is a
document, or a block of neighbouring tokens if documents are few; its tokens are summed first, and a metric is a
function of the sums over all units, θ = f(Σ s_u). Leaving out one of U units at a time gives the standard error

    se² = Σ_u (1 - p_u) (θ_(u) - θ)²,        [θ - t_ν se, θ + t_ν se]

where p_u is the unit's share of the tokens: the jackknife for units of unequal size, and the cluster-robust error "CR2"
of Bell and McCaffrey (2002, Survey Methodology 28:169) for a mean over tokens. Documents differ much in length, and an
error that rests on few long ones is itself uncertain, so Student's t has the ν degrees of freedom that these authors
derive for it (``degrees_of_freedom``): U - 1 for documents of equal length, fewer for others.

benchmarks/interval_coverage.py measures how often these intervals contain the truth, on real and simulated documents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from nanolm.metrics.records import Interval

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Scale = Literal["identity", "log", "logit", "proportion"]

MIN_UNITS = 8
"""With fewer units there is no interval: they say too little about their own spread."""
MIN_DEGREES_OF_FREEDOM = 2.0
"""With fewer, one or two long documents hold nearly all tokens, and documents are treated as if fewer than 8."""
MAX_BLOCKS = 64
MIN_TOKENS = 4 * MAX_BLOCKS
"""In a shorter text the correlation of neighbouring blocks cannot be estimated."""
_ECE_DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A metric with its standard error, on some scale; the standard error is NaN if none can be formed."""

    value: float
    standard_error: float
    degrees_of_freedom: float
    num_units: int = 0

    def half_width(self) -> float:
        """Return half the width of the 95 % interval that is symmetric about the value."""
        return float(stats.t.ppf(0.975, self.degrees_of_freedom)) * self.standard_error

    @property
    def interval(self) -> Interval:
        """The value with its symmetric 95 % interval, if there is a standard error."""
        half = self.half_width()
        return (
            Interval(self.value, self.value - half, self.value + half) if math.isfinite(half) else Interval(self.value)
        )

    def p_value(self, of: float = 0.0) -> float:
        """Return the two-sided p-value of the hypothesis that the truth is ``of``; NaN without a standard error."""
        distance = abs(self.value - of)
        if self.standard_error == 0:
            return float(distance == 0)
        return 2 * float(stats.t.sf(distance / self.standard_error, self.degrees_of_freedom))

    def p_equivalence(self, margin: float) -> float:
        """Return the p-value of two one-sided tests: that the truth is at least the margin away from 0."""
        if abs(self.value) >= margin:
            return 1.0
        return self.p_value(math.copysign(margin, self.value)) / 2


@dataclass(frozen=True)
class Units:
    """The parts of a split that count as independent.

    Attributes:
        first_target: (U,) number of each unit's first token in the split.
    """

    kind: Literal["documents", "blocks"]
    first_target: npt.NDArray[np.int64]
    description: str

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.first_target)

    def unit_of(self, position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the (N,) units of tokens from their (N,) positions in the split."""
        return np.asarray(np.searchsorted(self.first_target, position, side="right") - 1)


def independent_units(num_tokens: npt.NDArray[np.int64]) -> Units:
    """Return documents as units if there are 8 or more, else 64 contiguous blocks of about equal length.

    ``estimate`` starts from these blocks and joins neighbours until they no longer depend on each other. What blocks
    estimate is the mean of a text that continues as this one does, not that of other documents.

    Args:
        num_tokens: (num_documents,) tokens of each document.
    """
    total, count = int(num_tokens.sum()), len(num_tokens)
    if count >= MIN_UNITS and degrees_of_freedom(num_tokens.astype(float)) >= MIN_DEGREES_OF_FREEDOM:
        return Units("documents", np.cumsum(num_tokens) - num_tokens, f"95 % intervals over {count:,} documents")
    if total < MIN_TOKENS:
        text = f"no intervals: {total} tokens in {count} documents are too few"
        return Units("blocks", np.zeros(1, dtype=np.int64), text)
    few = "1 document cannot" if count == 1 else f"{count:,} documents cannot"
    if count >= MIN_UNITS:
        few = "one document holds nearly all of it, so that they cannot"
    text = f"95 % intervals over blocks of the text, given this text: {few} show how documents differ"
    return Units("blocks", np.arange(MAX_BLOCKS, dtype=np.int64) * total // MAX_BLOCKS, text)


def degrees_of_freedom(num_tokens: Floats) -> float:
    """Return Bell and McCaffrey's degrees of freedom of the standard error over units of these (U,) sizes.

    If the units' means m are independent and vary alike, se² is a quadratic form m'Am with A = (I - p1')D(I - 1p') and
    D = diag(d), d_u = p_u² / (1 - p_u); matching its mean and variance with those of a χ² gives (tr A)² / tr A².
    """
    total = num_tokens.sum()
    if len(num_tokens) < 2 or num_tokens.max() >= total:
        return 0.0
    p = num_tokens / total
    d = p**2 / (1 - p)
    s, pp, pd = d.sum(), p @ p, p @ d
    trace = s - 2 * pd + s * pp
    trace_of_square = (
        d @ d - 4 * (d**2 @ p) + 2 * s * (d @ p**2) + 2 * pd**2 + 2 * pp * (d @ d) - 4 * s * pp * pd + (s * pp) ** 2
    )
    return float(trace**2 / trace_of_square)


@dataclass(frozen=True)
class Jackknife:
    """Several functions of the same sums, with the covariance of their errors.

    Attributes:
        values: (n,)
        covariance: (n, n); NaN if the units are too few or a value is not finite.
        num_units: number of units that are not empty, after blocks were joined.
    """

    values: Floats
    covariance: Floats
    degrees_of_freedom: float
    num_units: int


def jackknife(statistic: Statistic, sums: Floats, weights: Floats, *, blocks: bool = False) -> Jackknife:
    """Estimate the covariance of several functions of sums by leaving out each unit in turn.

    Args:
        statistic: (..., K) sums to (..., n) values.
        sums: (U, K) sums of each unit; column 0 is its number of predictions.
        weights: (n,) of the values in the sum that decides how blocks are joined.
        blocks: the units are neighbouring blocks of a text. Then neighbours are joined, 64 to 32 to 16 to 8, until
            their contributions to the weighted sum of the values are no longer correlated from one to the next (batch
            means; Fishman 1978).
    """
    total = sums.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values, left_out = statistic(total), statistic(total - sums)
        while blocks and len(sums) >= 2 * MIN_UNITS and _lag_one_correlation(left_out @ weights) + 1 / len(sums) > 0:
            half = len(sums) // 2
            sums = np.add.reduceat(sums, np.arange(half) * len(sums) // half, axis=0)
            left_out = statistic(total - sums)
    num_units = int((sums[:, 0] > 0).sum())
    freedom = max(degrees_of_freedom(sums[:, 0]), 1.0)
    if num_units < MIN_UNITS or not (np.isfinite(values).all() and np.isfinite(left_out).all()):
        return Jackknife(values, np.full((len(values), len(values)), np.nan), freedom, num_units)
    change = (left_out - values) * np.sqrt(1 - sums[:, :1] / sums[:, 0].sum())
    return Jackknife(values, change.T @ change, freedom, num_units)


def _lag_one_correlation(values: Floats) -> float:
    """Return the correlation of neighbours, whose expectation is -1/U for U independent values."""
    centred = values - values.mean()
    square = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / square if square > 0 else -1.0


def estimate(statistic: Statistic, sums: Floats, *, blocks: bool = False) -> Estimate:
    """Return a function of sums over units, (..., K) to (...), with its jackknife standard error.

    Args:
        sums, blocks: as for ``jackknife``.
    """
    found = jackknife(lambda totals: statistic(totals)[..., None], sums, np.ones(1), blocks=blocks)
    value, error = float(found.values[0]), math.sqrt(found.covariance[0, 0])
    if error <= 1e-12 * max(abs(value), 1e-300):
        error = 0.0  # the same in every unit but for rounding
    return Estimate(value, error, found.degrees_of_freedom, found.num_units)


# From a metric to the scale on which its interval is symmetric, and back.
_LINKS: dict[Scale, tuple[Statistic, Callable[[float], float]]] = {
    "identity": (np.asarray, float),
    "log": (lambda value: np.asarray(np.log(value)), lambda value: math.exp(value) if value < 700 else math.inf),
    "logit": (
        lambda value: np.asarray(np.log(value) - np.log1p(-value)),
        lambda value: 0.5 * (1 + math.tanh(value / 2)),
    ),
    "proportion": (np.asarray, float),
}


def interval(
    statistic: Statistic, sums: Floats, *, scale: Scale = "identity", blocks: bool = False, least_variance: float = 0.0
) -> Interval:
    """Return the 95 % interval of a metric, within the bounds that the metric has.

    Args:
        statistic, sums, blocks: as for ``estimate``.
        scale: "log" for a metric above 0 and "logit" for one between 0 and 1: the interval is symmetric there.
            "proportion" for a share of predictions, which may be 0 or 1 itself: Wilson's interval (1927) of as many
            independent predictions as have this standard error (Korn and Graubard 1998 for the effective number), at
            most as many as there are.
        least_variance: a known lower bound of the variance, on the scale; few units can agree by chance.

    Returns:
        Value and bounds; without bounds if there are fewer than 8 units or the value is not finite. If a metric is the
        same in every unit, both bounds are the value itself.
    """
    forward, backward = _LINKS[scale]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(axis=0)))
        found = estimate(lambda totals: forward(statistic(totals)), sums, blocks=blocks)
    if math.isnan(found.standard_error):
        return Interval(value)
    if scale == "proportion":
        return _wilson(found, num_predictions=float(sums[:, 0].sum()))
    half = replace(found, standard_error=max(found.standard_error, math.sqrt(least_variance))).half_width()
    # Rounding in the transformations must not leave the value outside.
    return Interval(value, min(value, backward(found.value - half)), max(value, backward(found.value + half)))


def _wilson(share: Estimate, num_predictions: float) -> Interval:
    p, quantile = share.value, float(stats.t.ppf(0.975, share.degrees_of_freedom))
    # All correct or all wrong: the spread shows nothing, so a unit counts as one prediction.
    count = float(share.num_units)
    if 0 < p < 1:
        count = min(num_predictions, p * (1 - p) / max(share.standard_error**2, 1e-300))
    weight = quantile**2 / count
    middle = (p + weight / 2) / (1 + weight)
    half = math.sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    return Interval(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def paired_interval(statistic: Statistic, sums_a: Floats, sums_b: Floats, *, blocks: bool = False) -> Interval:
    """Return the interval of statistic(a) - statistic(b) for two models on the same (U, K) units."""
    if sums_a.shape != sums_b.shape:
        raise ValueError(f"expected the same units twice, found {sums_a.shape} and {sums_b.shape}")
    width = sums_a.shape[1]
    both = np.concatenate([sums_a, sums_b], axis=1)
    return interval(lambda sums: statistic(sums[..., :width]) - statistic(sums[..., width:]), both, blocks=blocks)


def total_variance(value: float, sources: Sequence[Estimate]) -> Estimate:
    """Return an estimate whose variance is the sum of the variances of several sources, each estimated on its own.

    The degrees of freedom are those of Welch (1947) and Satterthwaite: (Σ v)² / Σ (v²/ν) for variances v.
    """
    variances = [source.standard_error**2 for source in sources]
    total = sum(variances)
    divisor = sum(v**2 / source.degrees_of_freedom for v, source in zip(variances, sources, strict=True))
    # The divisor is 0 if the degrees of freedom are infinite; without any variance they do not matter.
    freedom = total**2 / divisor if divisor else math.inf
    return Estimate(value, math.sqrt(total), freedom)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with Student's standard error, which is NaN for one value."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    if error <= 1e-12 * max(map(abs, values)):
        error = 0.0  # equal but for rounding
    return Estimate(float(np.mean(values)), error, max(count - 1, 1), count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979): those up to α have a family-wise error of at most α."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def ece_interval(
    gaps: Statistic, least_variance: Statistic, sums: Floats, *, seed: int = 0, blocks: bool = False
) -> tuple[Interval, float]:
    """Return the interval of an expected calibration error Σ_b |δ_b|, which contains 0 if the model may be calibrated.

    The plugin value T = Σ_b |d_b| is above the truth on average, since noise adds to every |d_b|. So the lower end
    inverts a test: it is the smallest Σ|δ_b| under which a value as large as T has a probability of 2.5 %, and 0 if
    that probability is reached without any gap. The δ_b that are tried are the d_b moved towards 0 by a common number
    of standard errors. The upper end is T + t_ν se, which the noise makes too large rather than too small. The noise is
    normal with the covariance of the jackknife, divided by the square root of χ²/(U-1). A bin whose predictions are all
    correct or all wrong shows no variance, so each bin has at least the variance of independent outcomes of a
    calibrated model.

    Args:
        gaps: (..., K) sums to (..., B) signed gaps d_b; their absolute values add up to the ECE.
        least_variance: (..., K) sums to the (..., B) variances of the gaps of independent, calibrated outcomes.
        sums, blocks: as for ``jackknife``.
        seed: of the draws of noise; the same call gives the same interval.

    Returns:
        T with its interval, and the value under which T is the median: ECE without what noise adds (median-unbiased),
        NaN if there is no interval.
    """
    total = sums.sum(axis=0)
    found = jackknife(gaps, sums, np.sign(gaps(total)), blocks=blocks)
    observed, covariance, freedom = found.values, found.covariance, found.num_units - 1
    if np.isnan(covariance).any():
        return Interval(float(np.abs(observed).sum())), math.nan
    least = least_variance(total)
    covariance = covariance + np.diag(np.maximum(least - np.diag(covariance), 0))
    # Of Σ|d_b| itself: leaving out a document can change the sign of a gap, which ``found`` takes as fixed.
    whole = estimate(lambda totals: np.asarray(np.abs(gaps(totals)).sum(axis=-1)), sums, blocks=blocks)
    whole = replace(whole, standard_error=max(whole.standard_error, math.sqrt(least.sum())))
    errors = np.sqrt(np.diag(covariance))
    generator = np.random.default_rng(seed)
    noise = generator.multivariate_normal(np.zeros_like(observed), covariance, _ECE_DRAWS, method="eigh")
    noise /= np.sqrt(generator.chisquare(freedom, (_ECE_DRAWS, 1)) / freedom)

    def moved(steps: float) -> Floats:
        return np.asarray(np.sign(observed) * np.maximum(np.abs(observed) - steps * errors, 0))

    def share_above(steps: float) -> float:
        return float(np.mean(np.abs(moved(steps) + noise).sum(axis=1) >= whole.value))

    def inverted(probability: float) -> float:
        low = 0.0  # T itself: at least half of the draws lie above
        # Slightly beyond the largest, so that rounding leaves nothing of it.
        high = 1.000001 * float((np.abs(observed)[errors > 0] / errors[errors > 0]).max(initial=0.0))
        if share_above(high) <= probability and high > 0:
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if share_above(middle) > probability else (low, middle)
        return float(np.abs(moved(high)).sum())

    lowest, median = inverted(0.025), inverted(0.5)
    return Interval(whole.value, min(lowest, whole.value), whole.value + whole.half_width()), min(median, whole.value)
