import pytest

from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.theory import gaps, smoothed_cells


def inverted(nll, ece):
    return [{"calibrator": "inverse smoothing", "nll": nll, "ece": ece, "note": ""}]


def test_the_expected_ece_is_of_the_cell_without_smoothing(make_run, tmp_path):
    for seed in (0, 1):
        make_run(f"{seed}", seed, 1.9, figures={"confidence": 0.42 + 0.02 * seed, "temperature": 1.0})
        figures = {"ece": 0.032 + 0.002 * seed, "temperature": 0.85, "calibrators": inverted(1.9, 0.004)}
        make_run(f"{2 + seed}", seed, 1.95, figures=figures, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    (found,) = smoothed_cells(panel)
    assert found.expected_ece == pytest.approx(0.1 * (0.43 - 1 / 10))
    assert found.ece.mean == pytest.approx(0.033)
    assert found.obeys
    assert (found.nll_inverted.mean, found.nll_inverted.deviation) == (1.9, 0.0)


@pytest.mark.parametrize("figures", [{"ece": 0.06, "temperature": 0.85}, {"ece": 0.04, "temperature": 1.1}])
def test_a_model_that_does_not_obey_is_told_so(make_run, tmp_path, figures):
    make_run("0", 0, 1.9, figures={"temperature": 1.0})
    make_run("1", 0, 1.95, figures=figures | {"calibrators": []}, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    (found,) = smoothed_cells(panel)
    assert not found.obeys
    assert found.nll_inverted is None


def test_gaps_are_new_text_less_training_text(make_run, tmp_path):
    make_run("0", 0, figures={"ece": 0.14, "accuracy": 0.6})
    make_run("0", 0, split="train", figures={"ece": 0.01, "accuracy": 0.9})
    make_run("1", 0, figures={"ece": 0.14, "accuracy": 0.6}, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    (found,) = gaps(panel)
    assert found.calibration == pytest.approx(0.13)
    assert found.generalization == pytest.approx(0.3)
    assert found.within_bound
    (on_train,) = make_panels(find_runs(tmp_path / "runs", "train")[0])
    assert gaps(on_train) == []
