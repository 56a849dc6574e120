import math

import numpy as np
import pytest
from scipy import stats

from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.differences import difference, spread
from nanolm.comparison.tables import difference_text
from nanolm.evaluation.sums import column


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


def test_the_interval_over_seeds_is_students(panel):
    _, worse, _ = panel.cells
    ours, theirs = ([run.value("nll") for run in cell.runs] for cell in (worse, panel.baseline))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = difference(worse, panel.baseline, "nll")
    assert (found.seeds.low, found.seeds.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_the_interval_over_documents_is_that_of_paired_means(panel):
    """For the NLL, linear in the documents' sums but for the tokens: the bootstrap nears the delta method's normal."""
    _, worse, _ = panel.cells
    found = difference(worse, panel.baseline, "nll")
    tokens = column(worse.runs[0].units, "tokens")
    per_document = np.mean([column(run.units, "nll") for run in worse.runs], axis=0) - np.mean(
        [column(run.units, "nll") for run in panel.baseline.runs], axis=0
    )
    value = per_document.sum() / tokens.sum()
    residual = per_document - value * tokens
    error = math.sqrt(len(tokens) / (len(tokens) - 1) * np.square(residual).sum()) / tokens.sum()
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.documents.high - found.value == pytest.approx(2.02 * error, rel=0.15)
    assert found.documents.low == pytest.approx(2 * found.value - found.documents.high)


def test_a_difference_is_clear_where_text_and_seeds_agree(panel):
    _, worse, equal = panel.cells
    assert difference(worse, panel.baseline, "nll").is_clear
    assert not difference(equal, panel.baseline, "nll").is_clear
    assert difference(worse, panel.baseline, "accuracy") is not None
    assert difference(worse, panel.baseline, "temperature") is None


def test_a_single_seed_makes_nothing_clear(make_run, tmp_path):
    make_run("0", 0, 1.9)
    make_run("1", 0, 2.9, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = difference(panel.cells[1], panel.baseline, "nll")
    assert found.documents.low > 0
    assert found.seeds.low is None
    assert not found.is_clear


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
    assert difference(panel.cells[1], panel.baseline, "nll") is None
    assert difference(panel.cells[1], panel.baseline, "bits_per_byte").documents.low is not None


def test_another_text_of_the_same_counts_has_no_interval_over_documents(make_run, tmp_path):
    for number, corpus in enumerate(("a", "b")):
        make_run(f"{number}", 0, 1.9 + number, figures={"corpus": corpus}, loss__label_smoothing=0.1 * number)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = difference(panel.cells[1], panel.baseline, "nll")
    assert found.documents.low is None
    assert "not scored on the same text" in found.reason


def test_sums_of_another_evaluation_are_not_used(make_run, tmp_path):
    def score_otherwise(arrays):
        arrays["nll_sum"] = 1.01 * arrays["nll_sum"]  # as with another stride

    panel = of_two(make_run, tmp_path, score_otherwise)
    assert panel.cells[1].runs[0].units is None
    assert "of another evaluation" in difference(panel.cells[1], panel.baseline, "nll").reason
    (tmp_path / "runs/1/documents-val.npz").unlink()
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    assert "missing" in difference(panel.cells[1], panel.baseline, "nll").reason


def test_a_difference_is_over_the_seeds_that_both_have(make_run, tmp_path):
    for seed, own in enumerate((0.0, 0.1, 0.9)):
        make_run(f"{seed}", seed, 1.9 + own)
        if seed < 2:
            make_run(f"{3 + seed}", seed, 1.8 + own + 0.001 * seed, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    found = difference(panel.cells[1], panel.baseline, "nll")
    assert (found.value, found.num_left_out) == (pytest.approx(-0.0995), 1)
    assert found.seeds.value == pytest.approx(found.value)
    assert found.documents.value == pytest.approx(found.value)
    assert difference_text(found).count("*") == 1
    make_run("5", 7, 2.5, loss__label_smoothing=0.2)  # no seed in common
    panel = make_panels(find_runs(tmp_path / "runs")[0])[0]
    found = difference(panel.cells[2], panel.baseline, "nll")
    assert found.value == pytest.approx(2.5 - np.mean([1.9, 2.0, 2.8]))
    assert found.seeds.low is None


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
    found = difference(panel.cells[1], panel.baseline, "nll")
    assert found.documents.low is not None
    assert found.value == pytest.approx(1.0)
