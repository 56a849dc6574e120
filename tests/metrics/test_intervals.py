import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.interval_coverage import of_blocks, printed, simulated, temperature
from benchmarks.simulated_text import documents
from nanolm.metrics import NUM_BINS, WIDTH, Interval, column, independent_units, paired_interval
from nanolm.metrics.definitions import bin_gaps, bin_noise
from nanolm.metrics.intervals import (
    Estimate,
    degrees_of_freedom,
    ece_interval,
    estimate,
    holm,
    interval,
    mean_estimate,
    total_variance,
)


def ratio(sums):
    return sums[..., 1] / sums[..., 0]


def make_sums(num_units=40, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(50, 500, num_units).astype(float)
    return np.stack([tokens, tokens * generator.normal(4, 0.5, num_units), tokens * 3], axis=1)


def test_intervals_contain_the_truth():
    """Of few and many documents, of blocks of a correlated text, and of a temperature; the benchmark has the table.

    The share of 200 simulations has a standard error of 0.015.
    """
    for count in (8, 21):
        assert min(simulated(count, 0.0, simulations=200).values()) >= 0.91
    assert min(of_blocks(131_072, 0.8, simulations=150).values()) >= 0.88
    assert temperature(11, simulations=100) >= 0.90


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


def test_few_units_and_infinite_values_have_no_interval():
    few = make_sums(7)
    assert interval(ratio, few) == Interval(ratio(few.sum(axis=0)), None, None)
    with_empty_units = np.concatenate([few, np.zeros((17, 3))])
    assert interval(ratio, with_empty_units).low is None
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
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-4)


def test_a_share_of_1_in_few_long_documents_is_as_uncertain_as_one_prediction_each():
    tokens = np.full(10, 1e6)
    found = interval(ratio, np.stack([tokens, tokens], axis=1), scale="proportion")
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.8


def gaps(sums):
    return sums[..., 1:] / sums[..., :1]


def no_floor(sums):
    return 0 * sums[..., 1:]


def test_the_interval_of_ece_contains_0_for_a_calibrated_model_and_the_value_for_another():
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
    assert (found.degrees_of_freedom, found.p_value()) == pytest.approx((expected.df, expected.pvalue))
    bounds = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((bounds.low, bounds.high))
    assert mean_estimate([1.0]).interval == Interval(1.0, None, None)


def test_a_source_whose_error_is_known_exactly_has_the_normal_quantile():
    found = total_variance(1.0, [Estimate(0.0, 0.3, math.inf), Estimate(0.0, 0.4, math.inf)]).interval
    assert (found.low, found.high) == pytest.approx((1 - 1.96 * 0.5, 1 + 1.96 * 0.5), abs=1e-4)


@pytest.mark.parametrize("margin", [0.2, 0.5])
def test_equivalence_is_two_one_sided_t_tests(margin):
    values = np.random.default_rng(0).normal(0.1, 0.5, 30)
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert mean_estimate(values).p_equivalence(margin) == pytest.approx(max(above, below))
    assert mean_estimate(values + margin).p_equivalence(margin) == 1


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
    """Bins whose predictions are all correct or all wrong show no variance of their own."""
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


def test_an_accuracy_is_never_more_certain_than_independent_predictions_would_be():
    """Documents can agree by chance."""
    tokens = np.full(8, 10.0)
    found = interval(ratio, np.stack([tokens, np.full(8, 3.0)], axis=1), scale="proportion")
    independent = stats.binomtest(24, 80).proportion_ci(0.95, method="wilson")
    assert found.low <= independent.low < independent.high <= found.high
