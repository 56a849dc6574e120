import pytest
from scipy import stats

from nanolm.comparison import find_runs, make_panels
from nanolm.comparison.theory import gaps, smoothed_cells


def inverted(nll):
    return {"calibrators": [{"calibrator": "inverse smoothing", "nll": nll, "note": ""}]}


def test_expected_is_the_confidence_that_smoothing_takes_beside_what_was_missing_before(make_run, tmp_path):
    epsilon, num_classes = 0.1, 10
    for seed in (0, 1, 2):
        confidence, accuracy = 0.42 + 0.02 * seed, 0.45 + 0.02 * seed  # too modest by 0.03 already
        make_run(f"{seed}", seed, 1.9, figures={"confidence": confidence, "accuracy": accuracy, "temperature": 1.0})
        smoothed = (1 - epsilon) * confidence + epsilon / num_classes
        noise = 0.001 * (seed - 1)
        figures = {"confidence": smoothed - noise, "accuracy": accuracy, "temperature": 0.85, "ece": 0.064}
        make_run(f"{3 + seed}", seed, 1.95, figures=figures | inverted(1.9), loss__label_smoothing=epsilon)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    (found,) = smoothed_cells(panel)
    assert found.ece_if_calibrated == pytest.approx(0.1 * (0.44 - 1 / 10))
    assert found.expected_underconfidence.mean == pytest.approx(0.03 + 0.034)
    assert found.underconfidence.mean == pytest.approx(0.064)
    expected = stats.t.ppf(0.975, 2) * 0.001 / 3**0.5
    interval = found.excess.interval
    assert (interval.value, interval.high) == (pytest.approx(0, abs=1e-9), pytest.approx(expected))
    assert found.verdict == "within ±0.01"
    assert found.nll_inverted.mean == pytest.approx(1.9)


def test_a_model_that_does_not_obey_is_told_so_and_one_seed_tells_nothing(make_run, tmp_path):
    for seed in (0, 1):
        make_run(f"{seed}", seed, figures={"confidence": 0.5, "accuracy": 0.5})
        figures = {"confidence": 0.4 + 0.001 * seed, "accuracy": 0.5, "calibrators": []}
        make_run(f"{2 + seed}", seed, figures=figures, loss__label_smoothing=0.1)
        make_run(f"{4 + seed}", 0, figures=figures, loss__label_smoothing=0.2, model__name=f"{seed}")
    make_run("6", 0, figures={"confidence": 0.5, "accuracy": 0.5}, model__name="1")
    make_run("7", 0, figures=figures, loss__label_smoothing=0.3, optimizer__rate=0.5)  # differs in more than that
    distilled = {"label_smoothing": 0.1, "distillation": {"teacher": "somewhere"}}
    make_run("8", 0, figures=figures, loss=distilled)
    make_run("9", 0, loss=distilled | {"label_smoothing": 0.0})
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    broken, alone = smoothed_cells(panel)  # of model 0 there is no run without smoothing
    assert broken.verdict == "differs"
    assert broken.nll_inverted is None
    assert alone.verdict == "-"


def test_gaps_are_new_text_less_training_text(make_run, tmp_path):
    make_run("0", 0, figures={"ece": 0.14, "accuracy": 0.6})
    make_run("0", 0, split="train", figures={"ece": 0.01, "accuracy": 0.9})
    make_run("1", 0, figures={"ece": 0.14, "accuracy": 0.6}, loss__label_smoothing=0.1)
    (panel,) = make_panels(find_runs(tmp_path / "runs")[0])
    (found,) = gaps(panel)
    assert found.calibration == pytest.approx(0.13)
    assert found.generalization == pytest.approx(0.3)
    make_run("0", 0, split="train", figures={"ece": 0.01, "accuracy": 0.9, "step": 2})  # of an earlier end
    assert gaps(make_panels(find_runs(tmp_path / "runs")[0])[0]) == []
    (on_train,) = make_panels(find_runs(tmp_path / "runs", "train")[0])
    assert gaps(on_train) == []
