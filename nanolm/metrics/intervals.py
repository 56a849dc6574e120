"""Standard errors and 95 % intervals of metrics, from units that are nearly independent of each other.

Tokens of one document depend on each other, so an interval from the spread of tokens is far too narrow. A unit is a
document, or a block of neighbouring tokens where documents are few; its tokens are summed first, and a metric is a
function of the sums over all units, θ = f(Σ s_u). Leaving out one of U units at a time gives the standard error

    se² = Σ_u (1 - p_u) (θ_(u) - θ)²,        [θ - t_ν se, θ + t_ν se]

where p_u is the unit's share of the tokens: the jackknife for units of unequal size, and the cluster-robust error "CR2"
of Bell and McCaffrey (2002, Survey Methodology 28:169) for a mean over tokens. Documents differ much in length, and an
error that rests on few long ones is itself uncertain, so Student's t has the ν degrees of freedom that these authors
derive for it (``degrees_of_freedom``): U - 1 for documents of equal length, fewer for others.

benchmarks/interval_coverage.py measures how often these intervals hold the truth, on real and on simulated documents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Scale = Literal["identity", "log", "logit", "proportion"]

MIN_UNITS = 8
"""Fewer say too little about their own spread for any interval."""
MIN_DEGREES_OF_FREEDOM = 2.0
"""Where one or two long documents hold nearly all tokens, documents are as good as fewer than 8."""
MAX_BLOCKS = 64
MIN_TOKENS = 4 * MAX_BLOCKS
"""Fewer than this are no text whose blocks could be looked at for what they have in common."""
_ECE_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval; ``low`` and ``high`` are None where there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """A metric with its standard error, on some scale; a standard error of NaN where none can be formed."""

    value: float
    standard_error: float
    degrees_of_freedom: float
    num_units: int

    def half_width(self) -> float:
        """Of the 95 % interval that is symmetric about the value."""
        return float(stats.t.ppf(0.975, self.degrees_of_freedom)) * self.standard_error

    @property
    def interval(self) -> Interval:
        """The value with its symmetric 95 % interval, where there is a standard error."""
        half = self.half_width()
        known = math.isfinite(half)
        return Interval(self.value, self.value - half if known else None, self.value + half if known else None)

    def p_value(self, of: float = 0.0) -> float:
        """Two-sided, of the hypothesis that the truth is ``of``; NaN without a standard error."""
        distance = abs(self.value - of)
        if self.standard_error == 0:
            return float(distance == 0)
        return 2 * float(stats.t.sf(distance / self.standard_error, self.degrees_of_freedom))


@dataclass(frozen=True)
class Units:
    """What counts as independent."""

    kind: Literal["documents", "blocks"]
    first_target: npt.NDArray[np.int64]
    """(U,) number of each unit's first token in the split"""
    description: str

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.first_target)

    def unit_of(self, position: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The units of tokens at these places of the split."""
        return np.asarray(np.searchsorted(self.first_target, position, side="right") - 1)


def independent_units(num_tokens: npt.NDArray[np.int64]) -> Units:
    """Documents where there are 8 or more; else up to 64 contiguous blocks of about equal length.

    Blocks are only where ``estimate`` begins: it joins neighbours until they no longer depend on each other. What is
    estimated from them is the mean of a text that goes on as this one does, not that of other documents.

    Args:
        num_tokens: (num_documents,) tokens of each document.
    """
    total = int(num_tokens.sum())
    if len(num_tokens) >= MIN_UNITS and degrees_of_freedom(num_tokens.astype(float)) >= MIN_DEGREES_OF_FREEDOM:
        first = np.cumsum(num_tokens) - num_tokens
        return Units("documents", first, f"95 % intervals over {len(num_tokens):,} documents")
    count = min(MAX_BLOCKS, max(total, 1))
    few = "1 document cannot" if len(num_tokens) == 1 else f"{len(num_tokens):,} documents cannot"
    if len(num_tokens) >= MIN_UNITS:
        few = "one document holds nearly all of it, so that they cannot"
    text = f"95 % intervals over blocks of the text, given this text: {few} show how documents differ"
    if total < MIN_TOKENS:
        count, text = 1, f"no intervals: {total} tokens in {len(num_tokens)} documents are too few"
    return Units("blocks", np.arange(count, dtype=np.int64) * total // count, text)


def degrees_of_freedom(num_tokens: Floats) -> float:
    """Bell and McCaffrey's, of the standard error over units of these sizes.

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


def estimate(statistic: Statistic, sums: Floats, *, blocks: bool = False) -> Estimate:
    """A function of sums over units with its jackknife standard error.

    Args:
        statistic: (..., K) sums to (...) values.
        sums: (U, K) sums of each unit; column 0 is its number of predictions.
        blocks: the units are neighbouring blocks of a text. Then neighbours are joined, 64 to 32 to 16 to 8, until what
            they contribute to this statistic is no longer correlated from one to the next (batch means; Fishman 1978).
    """
    found = jackknife(lambda totals: statistic(totals)[..., None], sums, np.ones(1), blocks=blocks)
    value, error = float(found.values[0]), math.sqrt(found.covariance[0, 0])
    if error <= 1e-12 * max(abs(value), 1e-300):
        error = 0.0  # the same in every unit but for rounding
    return Estimate(value, error, found.degrees_of_freedom, found.num_units)


@dataclass(frozen=True)
class Jackknife:
    """Several functions of the same sums, and how their errors vary together."""

    values: Floats
    """(n,)"""
    covariance: Floats
    """(n, n); NaN where the units are too few or a value is not finite"""
    degrees_of_freedom: float
    num_units: int
    """units that are not empty, after blocks were joined"""


def jackknife(statistic: Statistic, sums: Floats, weights: Floats, *, blocks: bool = False) -> Jackknife:
    """Leave out each unit in turn.

    Args:
        statistic: (..., K) sums to (..., n) values.
        sums, blocks: as for ``estimate``.
        weights: (n,); blocks are joined until their contributions to the weighted sum of the values are uncorrelated.
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


def interval(
    statistic: Statistic,
    sums: Floats,
    *,
    scale: Scale = "identity",
    blocks: bool = False,
    least_variance: float = 0.0,
) -> Interval:
    """The 95 % interval of a metric, within the bounds that the metric has.

    Args:
        statistic, sums, blocks: as for ``estimate``.
        scale: "log" for a metric above 0 and "logit" for one between 0 and 1: the interval is symmetric there.
            "proportion" for a share of predictions, which may be 0 or 1 itself: Wilson's interval (1927) of as many
            independent predictions as have this standard error (Korn and Graubard 1998 for the effective number), at
            most as many as there are.
        least_variance: what the variance is known to be at least, on the scale; few units can agree by chance.

    Returns:
        Value and bounds; without bounds below 8 units or where the value is not finite. A metric that is the same in
        every unit has the value itself as both.
    """
    forward, backward = _LINKS[scale]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(axis=0)))
        found = estimate(lambda totals: forward(statistic(totals)), sums, blocks=blocks)
    if math.isnan(found.standard_error):
        return Interval(value, None, None)
    if scale == "proportion":
        return _wilson(found, num_predictions=float(sums[:, 0].sum()))
    half = replace(found, standard_error=max(found.standard_error, math.sqrt(least_variance))).half_width()
    # Rounding in the transformations must not leave the value outside.
    return Interval(value, min(value, backward(found.value - half)), max(value, backward(found.value + half)))


def total_variance(value: float, sources: Sequence[Estimate]) -> Estimate:
    """An estimate whose variance is the sum of that of several sources, each estimated on its own.

    The degrees of freedom are those of Welch (1947) and Satterthwaite: (Σ v)² / Σ (v²/ν) for variances v.
    """
    variances = [source.standard_error**2 for source in sources]
    freedom = sum(v**2 / source.degrees_of_freedom for v, source in zip(variances, sources, strict=True) if v)
    num_units = min((source.num_units for source in sources), default=0)
    return Estimate(value, math.sqrt(sum(variances)), sum(variances) ** 2 / freedom if freedom else 1.0, num_units)


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with Student's standard error, which is NaN below two of them."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    if error <= 1e-12 * max(map(abs, values)):
        error = 0.0  # equal but for rounding
    return Estimate(float(np.mean(values)), error, max(count - 1, 1), count)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): rejecting those of at most α has a family-wise error of α."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def ece_interval(
    gaps: Statistic, least_variance: Statistic, sums: Floats, *, seed: int = 0, blocks: bool = False
) -> tuple[Interval, float]:
    """The interval of an expected calibration error Σ_b |δ_b|, which holds 0 where the model may be calibrated.

    The plugin value T = Σ_b |d_b| is above the truth on average, since noise adds to every |d_b|. So the lower end is
    the smallest Σ|δ_b| under which a value as large as T has a probability of 2.5 % (a test inverted; the δ_b for which
    this is asked are the d_b moved towards 0 by a common number of standard errors), and 0 where no gap at all gives
    it that. The upper end is T + t_ν se, which the noise makes too large rather than too small. Noise is normal with
    the covariance of the jackknife, divided by the root of χ²/(U-1) over it. A bin whose predictions are all right or
    all wrong shows no variance, so each bin has at least that of independent outcomes of a calibrated model.

    Args:
        gaps: (..., K) sums to (..., B) signed gaps d_b; their absolute values add up to the ECE.
        least_variance: (..., K) sums to the (..., B) variances of the gaps of independent, calibrated outcomes.
        sums, blocks: as for ``estimate``.
        seed: of the draws of noise; the same call gives the same interval.

    Returns:
        T with its interval, and the value under which T is the median: ECE without what noise adds (median-unbiased),
        NaN where there is no interval.
    """
    signs = np.sign(gaps(sums.sum(axis=0)))
    found = jackknife(gaps, sums, signs, blocks=blocks)
    observed, covariance, freedom = found.values, found.covariance, found.num_units - 1
    value = float(np.abs(observed).sum())
    if np.isnan(covariance).any():
        return Interval(value, None, None), math.nan
    least = least_variance(sums.sum(axis=0))
    covariance = covariance + np.diag(np.maximum(least - np.diag(covariance), 0))
    # Of Σ|d_b| itself: leaving out a document can turn the sign of a gap, which its linear part does not know.
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
        # A little beyond the largest, so that rounding leaves nothing of it.
        high = 1.000001 * float((np.abs(observed)[errors > 0] / errors[errors > 0]).max(initial=0.0))
        if share_above(high) > probability or high == 0:
            return float(np.abs(moved(high)).sum())
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if share_above(middle) > probability else (low, middle)
        return float(np.abs(moved(high)).sum())

    lowest, median = inverted(0.025), inverted(0.5)
    return Interval(whole.value, min(lowest, whole.value), whole.value + whole.half_width()), min(median, whole.value)


def paired_interval(statistic: Statistic, sums_a: Floats, sums_b: Floats, *, blocks: bool = False) -> Interval:
    """The interval of statistic(a) - statistic(b), two models on the same (U, K) units, left out together."""
    if sums_a.shape != sums_b.shape:
        raise ValueError(f"expected the same units twice, found {sums_a.shape} and {sums_b.shape}")
    width = sums_a.shape[1]

    def difference(sums: Floats) -> Floats:
        return np.asarray(statistic(sums[..., :width]) - statistic(sums[..., width:]))

    return interval(difference, np.concatenate([sums_a, sums_b], axis=1), blocks=blocks)


def _lag_one_correlation(values: Floats) -> float:
    """Its expectation is -1/U for independent values."""
    centred = values - values.mean()
    square = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / square if square > 0 else -1.0


def _wilson(share: Estimate, num_predictions: float) -> Interval:
    p, quantile = share.value, float(stats.t.ppf(0.975, share.degrees_of_freedom))
    # All right or all wrong: the spread shows nothing, and no more is known than that of one prediction a unit.
    count = float(share.num_units)
    if 0 < p < 1:
        count = min(num_predictions, p * (1 - p) / max(share.standard_error**2, 1e-300))
    weight = quantile**2 / count
    middle = (p + weight / 2) / (1 + weight)
    half = math.sqrt(p * (1 - p) * weight + weight**2 / 4) / (1 + weight)
    return Interval(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def _logit(share: Floats) -> Floats:
    return np.asarray(np.log(share) - np.log1p(-share))


def _same(value: Floats) -> Floats:
    return value


_LINKS: dict[Scale, tuple[Statistic, Callable[[float], float]]] = {
    "identity": (_same, float),
    "log": (lambda value: np.asarray(np.log(value)), lambda value: math.exp(value) if value < 700 else math.inf),
    "logit": (_logit, lambda value: 0.5 * (1 + math.tanh(value / 2))),
    "proportion": (_same, float),
}
