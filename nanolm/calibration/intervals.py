"""95 % intervals by bootstrap over units that are nearly independent: documents, or blocks of a few long ones.

Tokens of one document depend on each other, so an interval from the spread of tokens is far too narrow. A unit's tokens
are summed first; what is resampled are the sums, so memory does not depend on the number of tokens.

The interval is the symmetric studentized one (bootstrap-t; Hall 1988, doi:10.1214/aos/1176350933): for resamples b

    t_b = (θ_b - θ) / se_b,        [θ - q se, θ + q se]

with q the 95 % quantile of |t_b|. A figure here is a smooth function of sums, θ = f(Σ s_u), so that its standard error
follows from the linearised units (delta method; the infinitesimal jackknife of Jaeckel 1972):

    se² = U/(U-1) Σ_u (∇f · (s_u - mean))²

Percentile, BCa and equal-tailed studentized intervals all cover less where documents are few and their lengths differ
much (benchmarks/interval_coverage.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

MIN_UNITS = 8
"""Fewer say too little about their own spread for any interval."""
MIN_DOCUMENTS = 30
_MIN_BLOCKS, _MAX_BLOCKS = 20, 100
_WINDOWS_PER_BLOCK = 4
_RESAMPLES_AT_ONCE_UNITS = 1 << 21


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; ``low`` and ``high`` are None where there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Units:
    """What is resampled."""

    kind: str
    """"documents" or "blocks" """
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


def resampling_units(num_tokens: npt.NDArray[np.int64], sequence_length: int) -> Units:
    """Documents where there are 30 or more; else 20 to 100 contiguous blocks of about equal length.

    Blocks are at least four windows long where the text allows it: within a block tokens may depend on each other.

    Args:
        num_tokens: (num_documents,) tokens of each document.
        sequence_length: tokens of a window.
    """
    total = int(num_tokens.sum())
    if len(num_tokens) >= MIN_DOCUMENTS:
        first = np.cumsum(num_tokens) - num_tokens
        return Units("documents", first, f"95 % bootstrap over {len(num_tokens):,} documents")
    count = min(max(total // (_WINDOWS_PER_BLOCK * sequence_length), _MIN_BLOCKS), _MAX_BLOCKS, max(total, 1))
    few = "1 document is" if len(num_tokens) == 1 else f"{len(num_tokens)} documents are"
    text = f"95 % bootstrap over {count} contiguous blocks of about {total // count:,} tokens ({few} too few)"
    if count < MIN_UNITS:
        text = f"no intervals: {total} tokens are too few"
    return Units("blocks", np.arange(count, dtype=np.int64) * total // count, text)


def bootstrap_interval(
    statistic: Statistic, sums: Floats, *, seed: int = 0, num_resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The studentized bootstrap interval of a figure of sums over units.

    Args:
        statistic: (..., K) sums over all units to (...) figures.
        sums: (U, K) sums of each unit.
        seed: seed of the resamples; the same call gives the same interval.
        num_resamples: bootstrap samples.
        level: coverage.

    Returns:
        Value and bounds; without bounds below 8 units or where the value is not finite. A figure that is the same in
        every unit has the value itself as both.
    """
    total = sums.sum(axis=0)
    value = float(statistic(total))
    num_units = len(sums)
    if num_units < MIN_UNITS or not np.isfinite(value):
        return Interval(value, None, None)
    active = _gradient(statistic, total[None], np.arange(sums.shape[1]))[0] != 0
    if not active.any():
        return Interval(value, value, value)
    columns = np.flatnonzero(active)
    error = _standard_errors(statistic, total[None], np.ones((1, num_units)), sums, columns)[0]
    if error <= 1e-12 * max(abs(value), 1e-300):
        return Interval(value, value, value)

    generator = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLES_AT_ONCE_UNITS // num_units)
    ratios = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        counts = generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=size).astype(np.float64)
        totals = counts @ sums
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = _standard_errors(statistic, totals, counts, sums, columns)
            ratios.append((statistic(totals) - value) / errors)
    t = np.abs(np.concatenate(ratios))
    half = float(np.quantile(t[~np.isnan(t)], level, method="closest_observation")) * error
    return Interval(value, value - half, value + half) if np.isfinite(half) else Interval(value, None, None)


def paired_interval(
    statistic: Statistic,
    sums_a: Floats,
    sums_b: Floats,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The interval of statistic(a) - statistic(b), two models on the same (U, K) units, resampled together."""
    if sums_a.shape != sums_b.shape:
        raise ValueError(f"expected the same units twice, found {sums_a.shape} and {sums_b.shape}")
    width = sums_a.shape[1]

    def difference(sums: Floats) -> Floats:
        return np.asarray(statistic(sums[..., :width]) - statistic(sums[..., width:]))

    both = np.concatenate([sums_a, sums_b], axis=1)
    return bootstrap_interval(difference, both, seed=seed, num_resamples=num_resamples, level=level)


def _standard_errors(
    statistic: Statistic, totals: Floats, counts: Floats, sums: Floats, columns: npt.NDArray[np.intp]
) -> Floats:
    """(R,) standard errors of the statistic in R resamples with (R, U) counts of the units."""
    gradient = _gradient(statistic, totals, columns)
    num_units = counts.shape[1]
    linear = gradient @ sums[:, columns].T  # (R, U)
    mean = (counts * linear).sum(axis=1, keepdims=True) / num_units
    return np.asarray(np.sqrt((counts * (linear - mean) ** 2).sum(axis=1) * num_units / (num_units - 1)))


def _gradient(statistic: Statistic, totals: Floats, columns: npt.NDArray[np.intp]) -> Floats:
    """(R, len(columns)) derivatives of the statistic at (R, K) totals, by central differences."""
    step = 1e-5 * np.maximum(np.abs(totals[:, columns]), 1e-3 * np.abs(totals).max())
    found = np.empty_like(step)
    with np.errstate(divide="ignore", invalid="ignore"):
        for place, index in enumerate(columns):
            moved = totals.copy()
            moved[:, index] += step[:, place]
            above = statistic(moved)
            moved[:, index] -= 2 * step[:, place]
            found[:, place] = (above - statistic(moved)) / (2 * step[:, place])
    return np.asarray(np.nan_to_num(found))
