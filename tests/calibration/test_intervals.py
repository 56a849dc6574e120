import math

import numpy as np
import pytest

from benchmarks.interval_coverage import coverage
from nanolm.calibration import Interval, bootstrap_interval, paired_interval, resampling_units


def ratio(sums):
    return sums[..., 1] / sums[..., 0]


def make_sums(num_units=40, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 500, num_units).astype(float)
    return np.stack([tokens, tokens * generator.normal(4, 0.5, num_units), tokens * 3], axis=1)


@pytest.mark.parametrize("count", [20, 60])
def test_intervals_cover_and_naive_ones_do_not(count):
    """The share of 300 simulations has a standard error of 0.013; the full table is the benchmark's."""
    shares = coverage(count, 0.5, simulations=300, num_resamples=400)
    assert 0.92 <= shares["ours, NLL"] <= 0.98
    assert 0.92 <= shares["ours, accuracy"] <= 0.98
    assert shares["naive, NLL"] < 0.7


def test_with_many_equal_units_it_is_the_normal_interval():
    generator = np.random.default_rng(0)
    values = generator.normal(3, 1, 4000)
    found = bootstrap_interval(ratio, np.stack([np.ones(4000), values], axis=1))
    half = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08 * half)


def test_the_standard_error_of_a_ratio_is_the_one_of_the_books():
    """Linearised: Σ (y - θ n)² / (Σ n)² U / (U - 1); the interval is some 2 of them wide on each side."""
    sums = make_sums(200)
    found = bootstrap_interval(ratio, sums)
    residuals = sums[:, 1] - found.value * sums[:, 0]
    error = math.sqrt(200 / 199 * (residuals**2).sum()) / sums[:, 0].sum()
    assert 1.85 < (found.high - found.value) / error < 2.2


def test_it_is_the_same_every_time_and_changes_with_the_seed():
    sums = make_sums()
    assert bootstrap_interval(ratio, sums) == bootstrap_interval(ratio, sums)
    assert bootstrap_interval(ratio, sums) != bootstrap_interval(ratio, sums, seed=1)


def test_columns_that_a_figure_does_not_use_change_nothing():
    sums = make_sums()
    assert bootstrap_interval(ratio, sums) == bootstrap_interval(ratio, sums[:, :2])


def test_few_units_and_infinite_figures_have_no_interval():
    assert bootstrap_interval(ratio, make_sums(7)) == Interval(ratio(make_sums(7).sum(axis=0)), None, None)
    sums = make_sums()
    sums[:, 0] = 0
    with np.errstate(divide="ignore"):
        assert bootstrap_interval(ratio, sums) == Interval(math.inf, None, None)


def test_a_figure_that_never_varies_is_its_own_interval():
    sums = make_sums()
    assert bootstrap_interval(lambda s: s[..., 2] / s[..., 0], sums) == Interval(3, 3, 3)
    assert bootstrap_interval(lambda s: 0 * s[..., 0], sums) == Interval(0, 0, 0)


def test_pairs_are_resampled_together():
    """Two models that differ by a constant on documents that differ a lot."""
    one = make_sums()
    other = one.copy()
    other[:, 1] -= 0.1 * other[:, 0]
    found = paired_interval(ratio, one, other)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-6
    other[:, 1] += np.random.default_rng(1).normal(0, 10, 40)
    found = paired_interval(ratio, one, other)
    assert found.low < 0.1 < found.high
    alone = bootstrap_interval(ratio, one)
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="same units"):
        paired_interval(ratio, one, other[:-1])


def test_documents_are_the_units_from_30_on():
    units = resampling_units(np.full(30, 7), sequence_length=4)
    assert (units.kind, units.count) == ("documents", 30)
    assert units.unit_of(np.array([0, 6, 7, 209])).tolist() == [0, 0, 1, 29]
    assert units.description == "95 % bootstrap over 30 documents"


@pytest.mark.parametrize(
    ("lengths", "sequence_length", "count"),
    [([111_540], 64, 100), ([20_000], 128, 39), ([100, 200], 128, 20), ([12], 4, 12), ([1], 4, 1)],
)
def test_blocks_are_the_units_below(lengths, sequence_length, count):
    units = resampling_units(np.array(lengths), sequence_length)
    total = sum(lengths)
    assert (units.kind, units.count) == ("blocks", count)
    sizes = np.bincount(units.unit_of(np.arange(total)), minlength=count)
    assert sizes.sum() == total
    assert sizes.max() - sizes.min() <= 1
    assert f"{len(lengths)} document" in units.description or "no intervals" in units.description
