import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.interval_coverage import of_blocks, printed, simulated, temperature
from benchmarks.simulated_text import documents
from nanolm.metrics import Interval, ece_interval, estimate, independent_units, interval, paired_interval
from nanolm.metrics.intervals import degrees_of_freedom, holm, mean_estimate, total_variance
from nanolm.metrics.sums import NUM_BINS, WIDTH, bin_gaps, bin_noise, column


def ratio(sums):
    return sums[..., 1] / sums[..., 0]


def make_sums(num_units=40, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 500, num_units).astype(float)
    return np.stack([tokens, tokens * generator.normal(4, 0.5, num_units), tokens * 3], axis=1)


@pytest.mark.parametrize("count", [8, 21])
def test_the_intervals_of_an_evaluation_hold_the_truth(count):
    """By the route that prints them; the share of 200 simulations has a standard error of 0.015. The full table is the
    benchmark's."""
    shares = simulated(count, 0.0, simulations=200)
    assert all(share >= 0.91 for share in shares.values()), shares


def test_blocks_of_one_correlated_text_hold_the_truth():
    shares = of_blocks(131_072, 0.8, simulations=150)
    assert all(share >= 0.88 for share in shares.values()), shares


def test_the_interval_of_a_temperature_holds_the_truth():
    assert temperature(11, simulations=100) >= 0.90


def test_tokens_taken_for_independent_would_not_hold_it():
    """What these intervals are for: the spread of tokens is too narrow where documents have levels of their own."""
    hits = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        nll = np.repeat(generator.normal(4, 0.1, 11), 500) + generator.normal(size=5500)
        hits += abs(nll.mean() - 4) <= 1.96 * nll.std() / math.sqrt(5500)
    assert hits / 200 < 0.7


def test_with_units_of_equal_size_it_is_students():
    values = np.random.default_rng(0).normal(3, 1, 20)
    found = interval(ratio, np.stack([np.ones(20), values], axis=1))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))


def test_the_standard_error_of_a_mean_over_tokens_is_the_bias_reduced_linearization():
    """CR2 of weighted least squares on a constant, written out."""
    sums = make_sums(15)
    share = sums[:, 0] / sums[:, 0].sum()
    residual = sums[:, 1] / sums[:, 0] - ratio(sums.sum(axis=0))
    expected = math.sqrt((share**2 * residual**2 / (1 - share)).sum())
    assert estimate(ratio, sums).standard_error == pytest.approx(expected)


def test_degrees_of_freedom_match_the_moments_of_the_quadratic_form():
    tokens = np.exp(np.random.default_rng(0).normal(5, 1, 12))
    p = tokens / tokens.sum()
    centre = np.eye(12) - np.outer(np.ones(12), p)
    form = centre.T @ np.diag(p**2 / (1 - p)) @ centre
    assert degrees_of_freedom(tokens) == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))
    assert degrees_of_freedom(np.full(9, 7.0)) == pytest.approx(8)
    assert degrees_of_freedom(np.array([0.0, 3.0])) == 0


def test_columns_that_a_metric_does_not_use_change_nothing():
    sums = make_sums()
    assert interval(ratio, sums) == interval(ratio, sums[:, :2])


def test_few_units_and_infinite_values_have_no_interval():
    assert interval(ratio, make_sums(7)) == Interval(ratio(make_sums(7).sum(axis=0)), None, None)
    sums = make_sums()
    sums[3, 1] = math.inf
    assert interval(ratio, sums) == Interval(math.inf, None, None)


def test_a_metric_that_never_varies_is_its_own_interval():
    sums = make_sums()
    assert interval(lambda s: s[..., 2] / s[..., 0], sums) == Interval(3, 3, 3)
    assert interval(lambda s: 0 * s[..., 0], sums) == Interval(0, 0, 0)


def test_intervals_stay_within_the_bounds_of_the_metric():
    rare = np.zeros((500, 2))
    rare[:, 0] = 1
    rare[:3, 1] = 20.0  # three examples make up all of the NLL
    found = interval(ratio, rare, scale="log")
    assert 0 < found.low < found.value < found.high
    share = make_sums()
    share[:, 1] = share[:, 0] * np.linspace(0.97, 0.9999, 40)
    found = interval(ratio, share, scale="logit")
    assert 0 < found.low < found.value < found.high < 1


@pytest.mark.parametrize("num_wrong", [0, 1, 2, 4, 40, 500])
def test_the_interval_of_a_share_of_independent_predictions_is_wilsons(num_wrong):
    """With the normal quantile, which Student's of 499 degrees of freedom is within a percent of."""
    right = np.ones(500)
    right[:num_wrong] = 0
    found = interval(ratio, np.stack([np.ones(500), right], axis=1), scale="proportion")
    expected = stats.binomtest(500 - num_wrong, 500).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=2e-4), pytest.approx(expected.high, abs=2e-4))


def test_a_share_of_1_in_few_long_documents_is_no_surer_than_one_prediction_each():
    tokens = np.full(10, 1e6)
    found = interval(ratio, np.stack([tokens, tokens], axis=1), scale="proportion")
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.8


def gaps(sums):
    return sums[..., 1:] / sums[..., :1]


def no_floor(sums):
    return 0 * sums[..., 1:]


def test_the_interval_of_ece_holds_0_for_a_calibrated_model_and_the_value_for_another():
    held, held_far = 0, 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        sums = np.concatenate([np.full((20, 1), 1000.0), generator.normal(0, 20, (20, 15))], axis=1)
        found, debiased = ece_interval(gaps, no_floor, sums)
        held += found.low == 0
        assert found.low <= debiased <= found.value <= found.high
        sums[:, 1:] += np.linspace(-8, 8, 15)
        far, _ = ece_interval(gaps, no_floor, sums)
        held_far += far.low <= np.abs(np.linspace(-8, 8, 15)).sum() / 1000 <= far.high
    assert held / 200 >= 0.93
    assert held_far / 200 >= 0.91


def test_the_debiased_ece_is_0_on_about_half_of_calibrated_samples():
    generator = np.random.default_rng(0)
    found = [
        ece_interval(gaps, no_floor, np.concatenate([np.ones((40, 1)), generator.normal(size=(40, 15))], axis=1))[1]
        for _ in range(100)
    ]
    assert 0.3 < np.mean(np.array(found) < 1e-3) < 0.7


def test_pairs_are_left_out_together():
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
    alone = interval(ratio, one)
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="same units"):
        paired_interval(ratio, one, other[:-1])


def test_blocks_that_depend_on_each_other_are_joined():
    independent = np.random.default_rng(0).normal(4, 1, (40, 64))
    counts = [estimate(ratio, np.stack([np.ones(64), x], axis=1), blocks=True).num_units for x in independent]
    assert np.mean(np.array(counts) == 64) > 0.4
    drifting = 4 + np.repeat(np.random.default_rng(0).normal(size=8), 8)
    found = estimate(ratio, np.stack([np.ones(64), drifting], axis=1), blocks=True)
    assert found.num_units == 8
    assert found.standard_error == pytest.approx(drifting[::8].std(ddof=1) / math.sqrt(8))


def test_documents_are_the_units_from_8_on():
    units = independent_units(np.full(8, 7))
    assert (units.kind, units.count) == ("documents", 8)
    assert units.unit_of(np.array([0, 6, 7, 55])).tolist() == [0, 0, 1, 7]
    assert "8 documents" in units.description


@pytest.mark.parametrize(
    ("lengths", "count"), [([111_540], 64), ([100, 200], 64), ([255], 1), ([1], 1), ([1] * 20 + [100_000], 64)]
)
def test_blocks_are_the_units_below_and_where_one_document_is_nearly_all(lengths, count):
    units = independent_units(np.array(lengths))
    total = sum(lengths)
    assert (units.kind, units.count) == ("blocks", count)
    sizes = np.bincount(units.unit_of(np.arange(total)), minlength=count)
    assert sizes.sum() == total
    assert sizes.max() - sizes.min() <= 1
    assert "given this text" in units.description or "no intervals" in units.description


def test_variances_of_two_sources_add_up_with_welchs_degrees_of_freedom():
    generator = np.random.default_rng(0)
    left, right = generator.normal(1, 1, 4), generator.normal(0, 3, 9)
    found = total_variance(left.mean() - right.mean(), [mean_estimate(left), mean_estimate(right)])
    expected = stats.ttest_ind(left, right, equal_var=False)
    assert found.degrees_of_freedom == pytest.approx(expected.df)
    assert found.p_value() == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))
    assert mean_estimate([1.0]).interval == Interval(1.0, None, None)


def test_holms_correction_is_that_of_the_books():
    """Holm 1979: the smallest of m by m, the next by m - 1, never below the one before, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_an_infinite_nll_leaves_the_intervals_of_other_metrics_as_they_are():
    units = documents(np.random.default_rng(0), 20, 0.8, 0.1)
    changed = units.copy()
    column(changed, "nll")[3] = math.inf
    before, after = printed(units), printed(changed)
    for name in ("accuracy", "confidence", "ece", "brier", "entropy", "nll_at_temperature"):
        assert after[name] == before[name]
        assert after[name].low < after[name].high
    for name in ("nll", "bits_per_byte", "entropy_gap"):
        assert (after[name].value, after[name].low, after[name].high) == (math.inf, None, None)


@pytest.mark.parametrize(("num_examples", "confidence"), [(30, 0.95), (100, 0.99), (100, 0.02), (569, 0.97)])
def test_the_ece_of_a_calibrated_classifier_with_few_errors_may_be_0(num_examples, confidence):
    """Bins that are all right or all wrong show no variance of their own."""
    held = 0
    for seed in range(200):
        sums = np.zeros((num_examples, WIDTH))
        column(sums, "tokens")[:] = 1
        place = min(int(confidence * NUM_BINS), NUM_BINS - 1)
        column(sums, "bin_count")[:, place] = 1
        column(sums, "bin_confidence")[:, place] = confidence
        column(sums, "bin_correct")[:, place] = np.random.default_rng(seed).random(num_examples) < confidence
        held += ece_interval(bin_gaps, bin_noise, sums)[0].low == 0
    assert held / 200 >= 0.92


def test_an_accuracy_is_never_surer_than_independent_predictions_would_be():
    """Documents can agree by chance."""
    tokens = np.full(8, 10.0)
    found = interval(ratio, np.stack([tokens, np.full(8, 3.0)], axis=1), scale="proportion")
    independent = stats.binomtest(24, 80).proportion_ci(0.95, method="wilson")
    assert found.low <= independent.low < independent.high <= found.high


def test_empty_units_count_for_nothing():
    sums = np.concatenate([make_sums(3), np.zeros((17, 3))])
    assert interval(ratio, sums).low is None
