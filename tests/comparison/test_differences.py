import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.comparison_errors import errors
from nanolm.comparison.differences import NO_SUMS, ONE_SEED, OTHER_TEXT, OTHER_UNITS, differences, hypotheses
from nanolm.comparison.runs import values_of
from nanolm.comparison.tables import about_differences, difference_text, mean_text
from nanolm.comparison.theory import smoothed_cells
from nanolm.metrics import column
from nanolm.metrics.intervals import degrees_of_freedom


@pytest.fixture
def panel(make_run, panel_of):
    """A baseline with three seeds, a cell that is worse by 0.1, and one that is as good."""
    for cell, (smoothing, offset) in enumerate(((0.0, 0.0), (0.1, 0.1), (0.2, 0.0))):
        for seed, own in enumerate((0.0, 0.004, -0.004)):
            nll = 1.9 + offset + own + 0.003 * (seed - 1) * (cell - 1)
            make_run(f"{3 * cell + seed}", seed, nll, 3 * cell + seed + 1, loss__label_smoothing=smoothing)
    return panel_of()


def of(panel, cell, metric="nll", margin=None):
    return differences(panel, margin).get((panel.cells[cell], metric))


def error_and_freedom(found, panel):
    """The standard error of text and seeds together and its degrees of freedom, written out for three seeds."""
    error = math.hypot(found.text, found.seeds)
    of_text = degrees_of_freedom(column(panel.baseline.runs[0].units, "tokens"))
    return error, error**4 / (found.seeds**4 / 2 + found.text**4 / of_text)


def test_mean_and_deviation_over_seeds(panel):
    values = values_of(panel.baseline.runs, "nll")
    assert values == pytest.approx([1.903, 1.904, 1.893])
    assert mean_text(values) == "1.900 ± 0.0061"
    assert mean_text(values[:1], num_runs=3) == "1.903 (1 runs)"
    assert mean_text(values_of(panel.baseline.runs, "brier")) == "-"


def test_the_variance_over_seeds_is_that_of_a_paired_t_test(panel):
    ours, theirs = (values_of(panel.cells[cell].runs, "nll") for cell in (1, 0))
    expected = stats.ttest_rel(ours, theirs)
    assert of(panel, 1).seeds == pytest.approx(np.mean(np.subtract(ours, theirs)) / expected.statistic)


def test_the_interval_adds_the_variance_of_the_text_to_that_of_the_seeds(panel):
    """For the NLL, linear in the documents' sums but for the tokens: the covariance of two seeds' differences is, on
    average, the variance that all seeds share."""
    found = of(panel, 1)
    units = [[run.units for run in panel.cells[cell].runs] for cell in (1, 0)]
    tokens = column(units[0][0], "tokens")
    share = tokens / tokens.sum()
    per_seed = np.array([(column(a, "nll") - column(b, "nll")) / tokens for a, b in zip(*units, strict=True)])
    residual = (per_seed - (per_seed @ share)[:, None]) * share / np.sqrt(1 - share)
    covariance = residual @ residual.T
    shared = (covariance.sum() - np.trace(covariance)) / 6
    assert found.text == pytest.approx(math.sqrt(max(shared, 0)), rel=1e-5, abs=1e-9)
    (error, freedom), interval = error_and_freedom(found, panel), found.estimate.interval
    assert interval.high - interval.value == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert interval.low == pytest.approx(2 * interval.value - interval.high)


def test_a_difference_is_significant_after_the_correction_for_its_panel(panel):
    assert of(panel, 1).is_significant
    assert not of(panel, 2).is_significant
    assert of(panel, 1, "accuracy") is not None
    assert of(panel, 1, "temperature") is None
    tested = hypotheses(differences(panel))
    assert len(tested) == 4  # NLL and accuracy of two cells; nothing else that runs have is tested
    found = of(panel, 1)
    error, freedom = error_and_freedom(found, panel)
    alone = 2 * stats.t.sf(found.estimate.value / error, freedom)
    assert found.p_value == pytest.approx(len(tested) * alone)  # it is the smallest of them


def test_equivalence_is_within_a_margin_or_not_at_all(panel):
    assert of(panel, 2).p_equivalence is None
    assert of(panel, 2, margin=0.5).is_equivalent
    assert not of(panel, 2, margin=0.0001).is_equivalent
    assert not of(panel, 1, margin=0.05).is_equivalent
    assert "≈" in difference_text(of(panel, 2, margin=0.5))


def test_a_single_seed_makes_nothing_significant(make_run, panel_of):
    make_run("0", 0, 1.9)
    make_run("1", 0, 2.9, noise=1, loss__label_smoothing=0.1)
    panel = panel_of()
    found = of(panel, 1)
    assert found.estimate.interval.low > 0
    assert (found.seeds, found.is_significant, found.reason) == (None, False, ONE_SEED)
    assert ONE_SEED in about_differences(panel, differences(panel))


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(("num_documents", "num_seeds"), [(11, 3), (30, 5)])
def test_of_two_equal_configurations_few_tables_have_a_significant_difference(num_documents, num_seeds, common):
    """Of 150 tables whose true share is 0.05, more than 15 with a probability of 0.5 %; the benchmark has more."""
    found = errors(150, num_documents, num_seeds, common=common)
    assert found.pop("any significant") <= 0.1
    assert min(found.values()) >= 0.9


def with_twice_the_tokens(sums):
    """The same NLL per token."""
    return sums | {name: 2 * sums[name] for name in ("num_tokens", "nll_sum")}


def with_another_nll(sums):
    return sums | {"nll_sum": 1.01 * sums["nll_sum"]}  # as with another stride


def with_pairs_joined(sums):
    return {name: array[::2] + array[1::2] for name, array in sums.items()}  # as by another version


def test_other_tokens_of_one_text_are_compared_by_the_byte_alone(make_run, panel_of):
    make_run("0", 0, 1.9, found={"bits_per_byte": 1.3})
    found = {"bits_per_byte": 1.4}
    make_run("1", 0, 2.0, found=found, change_sums=with_twice_the_tokens, loss__label_smoothing=0.1)
    panel = panel_of()
    assert of(panel, 1) is None
    assert of(panel, 1, "bits_per_byte").estimate.interval.low is not None


def test_another_text_of_the_same_counts_has_no_interval_over_documents(make_run, panel_of):
    for number, corpus in enumerate(("a", "b")):
        make_run(f"{number}", 0, 1.9 + number, found={"corpus": corpus}, loss__label_smoothing=0.1 * number)
    found = of(panel_of(), 1)
    assert (found.text, found.p_value, found.reason) == (None, None, OTHER_TEXT)


def test_sums_of_another_evaluation_are_not_used(make_run, panel_of):
    make_run("0", 0, 1.9)
    place = make_run("1", 0, 2.0, change_sums=with_another_nll, loss__label_smoothing=0.1)
    panel = panel_of()
    assert panel.cells[1].runs[0].units is None
    assert of(panel, 1).reason == NO_SUMS
    (place / "documents-val.npz").unlink()
    assert of(panel_of(), 1).reason == NO_SUMS


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_sums_over_other_units_of_the_same_text_are_not_used(make_run, panel_of, num_seeds):
    for seed in range(num_seeds):
        make_run(f"{seed}", seed, 1.9, found={"corpus": "one"})
        changed = {"found": {"corpus": "one"}, "change_sums": with_pairs_joined}
        make_run(f"{2 + seed}", seed, 2.0, loss__label_smoothing=0.1, **changed)
    panel = panel_of()
    found = of(panel, 1)
    assert (found.reason, found.p_value, found.text) == (OTHER_UNITS, None, None)
    assert OTHER_UNITS in about_differences(panel, differences(panel))
    assert [row.verdict for row in smoothed_cells(panel)] == ["-"]


def test_seeds_that_deal_the_same_examples_otherwise_are_compared_on_them(make_run, panel_of):
    """A classifier's training parts: each seed takes every example a number of times of its own, both cells alike."""
    for seed in (0, 1):
        for number in (0, 1):
            make_run(
                f"{2 * seed + number}",
                seed,
                1.9 + number,
                found={"corpus": "one"},
                change_sums=lambda sums, seed=seed: {name: (1 + seed) * array for name, array in sums.items()},
                loss__label_smoothing=0.1 * number,
            )
    found = of(panel_of(), 1).estimate
    assert (found.value, found.interval.low is not None) == (pytest.approx(1.0), True)


def test_a_difference_is_over_the_seeds_that_both_have(make_run, panel_of):
    for seed, own in enumerate((0.0, 0.1, 0.9)):
        make_run(f"{seed}", seed, 1.9 + own)
        if seed < 2:
            make_run(f"{3 + seed}", seed, 1.8 + own + 0.001 * seed, loss__label_smoothing=0.1)
    found = of(panel_of(), 1)
    assert (found.estimate.value, found.num_left_out) == (pytest.approx(-0.0995), 1)
    assert difference_text(found).count("*") == 1
    make_run("5", 7, 2.5, loss__label_smoothing=0.2)  # no seed in common
    found = of(panel_of(), 2)
    assert found.estimate.value == pytest.approx(2.5 - np.mean([1.9, 2.0, 2.8]))
    assert (found.seeds, found.num_left_out) == (None, 0)


def test_seeds_are_paired_from_two_that_both_have_on(make_run, panel_of):
    """One in common says nothing about the spread: then all runs of both cells are used."""
    for seed in range(5):
        make_run(f"{seed}", seed, 1.9 + 0.01 * seed, noise=seed, loss__label_smoothing=0.1 * (seed > 2))
    make_run("5", 2, 1.95, noise=5, loss__label_smoothing=0.1)
    panel, cells = panel_of(), ([1.93, 1.94, 1.95], [1.9, 1.91, 1.92])
    found = of(panel, 1)
    assert found.estimate.value == pytest.approx(np.mean(cells[0]) - np.mean(cells[1]))
    expected = math.hypot(*(np.std(values, ddof=1) / math.sqrt(3) for values in cells))
    assert (found.seeds, found.num_left_out) == (pytest.approx(expected), 0)
