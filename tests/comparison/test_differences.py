import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.comparison_errors import errors
from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.differences import ONE_SEED, OTHER_UNITS, differences, num_tests, spread
from nanolm.comparison.tables import about_differences, difference_text
from nanolm.comparison.theory import smoothed_cells
from nanolm.metrics.intervals import degrees_of_freedom
from nanolm.metrics.sums import column


@pytest.fixture
def panel(make_run, tmp_path):
    """A baseline with three seeds, a cell that is worse by 0.1, and one that is as good."""
    noise = 0
    for cell, (smoothing, offset) in enumerate(((0.0, 0.0), (0.1, 0.1), (0.2, 0.0))):
        for seed, own in enumerate((0.0, 0.004, -0.004)):
            jitter = 0.003 * (seed - 1) * (cell - 1)
            noise += 1
            make_run(f"{3 * cell + seed}", seed, 1.9 + offset + own + jitter, noise, loss__label_smoothing=smoothing)
    return make_panels(find_runs(tmp_path / "runs")[0])[0]


def test_mean_and_deviation_over_seeds(panel):
    values = [run.value("nll") for run in panel.baseline.runs]
    found = spread(panel.baseline.runs, "nll")
    assert (found.num_runs, found.mean) == (3, pytest.approx(np.mean(values), abs=1e-12))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert spread(panel.baseline.runs[:1], "nll").deviation is None
    assert spread(panel.baseline.runs, "brier") is None


def of(panel, cell, metric, margin=None):
    return differences(panel, margin).get((cell, metric))


def test_the_variance_over_seeds_is_that_of_a_paired_t_test(panel):
    _, worse, _ = panel.cells
    ours, theirs = ([run.value("nll") for run in cell.runs] for cell in (worse, panel.baseline))
    expected = stats.ttest_rel(ours, theirs)
    assert of(panel, worse, "nll").seeds == pytest.approx(np.mean(np.subtract(ours, theirs)) / expected.statistic)


def test_the_interval_adds_the_variance_of_the_text_to_that_of_the_seeds(panel):
    """For the NLL, linear in the documents' sums but for the tokens: the covariance of two seeds' differences is, on
    average, the variance that all seeds share."""
    _, worse, _ = panel.cells
    found = of(panel, worse, "nll")
    tokens = column(worse.runs[0].units, "tokens")
    share = tokens / tokens.sum()
    per_seed = np.array(
        [
            (column(a.units, "nll") - column(b.units, "nll")) / tokens
            for a, b in zip(worse.runs, panel.baseline.runs, strict=True)
        ]
    )
    residual = (per_seed - (per_seed @ share)[:, None]) * share / np.sqrt(1 - share)
    covariance = residual @ residual.T
    shared = (covariance.sum() - np.trace(covariance)) / 6
    assert found.text == pytest.approx(math.sqrt(max(shared, 0)), rel=1e-5, abs=1e-9)
    error = math.hypot(found.text, found.seeds)
    freedom = error**4 / (found.seeds**4 / 2 + found.text**4 / degrees_of_freedom(tokens))
    assert found.interval.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    assert found.interval.low == pytest.approx(2 * found.value - found.interval.high)


def test_a_difference_is_significant_after_the_correction_for_its_panel(panel):
    _, worse, equal = panel.cells
    assert of(panel, worse, "nll").is_significant
    assert not of(panel, equal, "nll").is_significant
    assert of(panel, worse, "accuracy") is not None
    assert of(panel, worse, "temperature") is None
    assert num_tests(panel) == sum(
        difference.p_value is not None and metric != "bits_per_byte"
        for (_, metric), difference in differences(panel).items()
    )
    found = of(panel, worse, "nll")
    tokens = column(worse.runs[0].units, "tokens")
    error = math.hypot(found.text, found.seeds)
    freedom = error**4 / (found.seeds**4 / 2 + found.text**4 / degrees_of_freedom(tokens))
    alone = 2 * stats.t.sf(found.value / error, freedom)
    assert found.p_value == pytest.approx(num_tests(panel) * alone)  # it is the smallest of them


def test_equivalence_is_within_a_margin_or_not_at_all(panel):
    _, worse, equal = panel.cells
    assert of(panel, equal, "nll").p_equivalence is None
    assert of(panel, equal, "nll", margin=0.5).is_equivalent
    assert not of(panel, equal, "nll", margin=0.0001).is_equivalent
    assert not of(panel, worse, "nll", margin=0.05).is_equivalent
    assert "≈" in difference_text(of(panel, equal, "nll", margin=0.5))


def test_a_single_seed_makes_nothing_significant(make_run, tmp_path):
    make_run("0", 0, 1.9)
    make_run("1", 0, 2.9, noise=1, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert found.interval.low > 0
    assert found.seeds is None
    assert not found.is_significant
    assert found.reason == ONE_SEED
    assert "one seed" in about_differences(panel)


@pytest.mark.parametrize(("num_documents", "num_seeds"), [(11, 3), (30, 5)])
def test_of_two_equal_configurations_few_tables_have_a_significant_difference(num_documents, num_seeds):
    """Of 150 tables whose true share is 0.05, more than 15 with a probability of 0.5 %; the benchmark has more."""
    for common in (False, True):
        found = errors(150, num_documents, num_seeds, common=common)
        assert found.pop("any significant") <= 0.1
        assert min(found.values()) >= 0.9


def of_two(make_run, tmp_path, change):
    """The panel of two cells, after the second one's sums were changed."""
    make_run("0", 0, 1.9, figures={"bits_per_byte": 1.3})
    place = make_run("1", 0, 2.0, figures={"bits_per_byte": 1.4}, loss__label_smoothing=0.1)
    with np.load(place / "documents-val.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(place / "documents-val.npz", **arrays)
    return make_panels(find_runs(tmp_path / "runs")[0])[0]


def test_other_tokens_of_one_text_are_compared_by_the_byte_alone(make_run, tmp_path):
    def cut_otherwise(arrays):
        for name in ("num_tokens", "nll_sum"):  # the same NLL per token
            arrays[name] = 2 * arrays[name]

    panel = of_two(make_run, tmp_path, cut_otherwise)
    assert of(panel, panel.cells[1], "nll") is None
    assert of(panel, panel.cells[1], "bits_per_byte").interval.low is not None


def test_another_text_of_the_same_counts_has_no_interval_over_documents(make_run, tmp_path):
    for number, corpus in enumerate(("a", "b")):
        make_run(f"{number}", 0, 1.9 + number, figures={"corpus": corpus}, loss__label_smoothing=0.1 * number)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert found.text is None
    assert found.p_value is None
    assert "not scored on the same text" in found.reason


def test_sums_of_another_evaluation_are_not_used(make_run, tmp_path):
    def score_otherwise(arrays):
        arrays["nll_sum"] = 1.01 * arrays["nll_sum"]  # as with another stride

    panel = of_two(make_run, tmp_path, score_otherwise)
    assert panel.cells[1].runs[0].units is None
    assert "of another evaluation" in of(panel, panel.cells[1], "nll").reason
    (tmp_path / "runs/1/documents-val.npz").unlink()
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    assert "missing" in of(panel, panel.cells[1], "nll").reason


def test_a_difference_is_over_the_seeds_that_both_have(make_run, tmp_path):
    for seed, own in enumerate((0.0, 0.1, 0.9)):
        make_run(f"{seed}", seed, 1.9 + own)
        if seed < 2:
            make_run(f"{3 + seed}", seed, 1.8 + own + 0.001 * seed, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert (found.value, found.num_left_out) == (pytest.approx(-0.0995), 1)
    assert found.interval.value == found.value
    assert difference_text(found).count("*") == 1
    make_run("5", 7, 2.5, loss__label_smoothing=0.2)  # no seed in common
    panel = make_panels(find_runs(tmp_path / "runs")[0])[0]
    found = of(panel, panel.cells[2], "nll")
    assert found.value == pytest.approx(2.5 - np.mean([1.9, 2.0, 2.8]))
    assert found.seeds is None
    assert found.num_left_out == 0


def test_seeds_that_deal_the_same_examples_otherwise_are_compared_on_them(make_run, tmp_path):
    """A classifier's training parts: each seed takes every example a number of times of its own, both cells alike."""
    for seed in (0, 1):
        for number, smoothing in enumerate((0.0, 0.1)):
            place = make_run(
                f"{2 * seed + number}", seed, 1.9 + number, figures={"corpus": "one"}, loss__label_smoothing=smoothing
            )
            with np.load(place / "documents-val.npz") as file:
                arrays = {name: (1 + seed) * array for name, array in file.items()}
            np.savez(place / "documents-val.npz", **arrays)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert found.interval.low is not None
    assert found.value == pytest.approx(1.0)


def test_seeds_are_paired_from_two_that_both_have_on(make_run, tmp_path):
    """One in common is no pair to learn from: then all runs of both cells play their part."""
    for seed in range(5):
        make_run(f"{seed}", seed, 1.9 + 0.01 * seed, noise=seed, loss__label_smoothing=0.1 * (seed > 2))
    make_run("5", 2, 1.95, noise=5, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert found.value == pytest.approx(np.mean([1.93, 1.94, 1.95]) - np.mean([1.9, 1.91, 1.92]))
    expected = math.hypot(
        *(np.std(values, ddof=1) / math.sqrt(3) for values in ([1.93, 1.94, 1.95], [1.9, 1.91, 1.92]))
    )
    assert (found.seeds, found.num_left_out) == (pytest.approx(expected), 0)
    assert "left out" not in about_differences(panel)


def test_sums_over_other_units_of_the_same_text_are_told(make_run, tmp_path):
    """As those of an evaluation by another version."""

    def join_pairs(arrays):
        for name in arrays:
            arrays[name] = arrays[name][::2] + arrays[name][1::2]

    for seed in (0, 1):
        for number, smoothing in enumerate((0.0, 0.1)):
            place = make_run(
                f"{2 * seed + number}",
                seed,
                1.9 + 0.1 * number,
                figures={"corpus": "one"},
                loss__label_smoothing=smoothing,
            )
            if smoothing:
                with np.load(place / "documents-val.npz") as file:
                    arrays = dict(file)
                join_pairs(arrays)
                np.savez(place / "documents-val.npz", **arrays)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = of(panel, panel.cells[1], "nll")
    assert (found.reason, found.p_value, found.text) == (OTHER_UNITS, None, None)
    assert OTHER_UNITS in about_differences(panel)
    assert [row.verdict for row in smoothed_cells(panel)] == ["-"]
