import pytest
from scipy import stats

from nanolm.comparison.theory import gaps, smoothed_cells


def test_expected_is_the_confidence_that_smoothing_takes_and_what_was_missing_before(make_run, panel_of):
    epsilon, num_classes = 0.1, 10
    for seed in (0, 1, 2):
        confidence, accuracy = 0.42 + 0.02 * seed, 0.45 + 0.02 * seed  # underconfident by 0.03 already
        make_run(f"{seed}", seed, 1.9, found={"confidence": confidence, "accuracy": accuracy, "temperature": 1.0})
        smoothed = (1 - epsilon) * confidence + epsilon / num_classes - 0.001 * (seed - 1)
        found = {"confidence": smoothed, "accuracy": accuracy, "temperature": 0.85, "ece": 0.064}
        found["calibrators"] = [{"calibrator": "inverse smoothing", "nll": 1.9}]
        make_run(f"{3 + seed}", seed, 1.95, found=found, loss__label_smoothing=epsilon)
    (found,) = smoothed_cells(panel_of())
    assert found.shift == pytest.approx(0.1 * (0.44 - 1 / 10))
    assert sum(found.expected) / 3 == pytest.approx(0.03 + 0.034)
    assert sum(found.measured) / 3 == pytest.approx(0.064)
    interval = found.excess.interval
    assert interval.value == pytest.approx(0, abs=1e-9)
    assert interval.high == pytest.approx(stats.t.ppf(0.975, 2) * 0.001 / 3**0.5)
    assert found.verdict == "within ±0.01"
    assert found.nll_inverted == pytest.approx([1.9] * 3)


def test_a_model_that_does_not_follow_theory_differs_and_one_seed_shows_nothing(make_run, panel_of):
    for seed in (0, 1):
        make_run(f"{seed}", seed, found={"confidence": 0.5, "accuracy": 0.5})
        found = {"confidence": 0.4 + 0.001 * seed, "accuracy": 0.5}
        make_run(f"{2 + seed}", seed, found=found, loss__label_smoothing=0.1)
        make_run(f"{4 + seed}", 0, found=found, loss__label_smoothing=0.2, model__name=f"{seed}")
    make_run("6", 0, found={"confidence": 0.5, "accuracy": 0.5}, model__name="1")
    make_run("7", 0, found=found, loss__label_smoothing=0.3, optimizer__rate=0.5)  # differs in more than that
    distilled = {"loss__distillation": {"teacher": "somewhere"}}
    make_run("8", 0, found=found, loss__label_smoothing=0.1, **distilled)
    make_run("9", 0, **distilled)
    broken, alone = smoothed_cells(panel_of())  # of model 0 there is no run without smoothing
    assert broken.verdict == "differs"
    assert broken.nll_inverted == []
    assert alone.verdict == "-"


def test_gaps_are_new_text_minus_training_text(make_run, panel_of):
    make_run("0", 0, found={"ece": 0.14, "accuracy": 0.6})
    make_run("0", 0, split="train", found={"ece": 0.01, "accuracy": 0.9})
    make_run("1", 0, found={"ece": 0.14, "accuracy": 0.6}, loss__label_smoothing=0.1)
    (found,) = gaps(panel_of())
    assert (found.calibration, found.generalization) == (pytest.approx(0.13), pytest.approx(0.3))
    assert gaps(panel_of("train")) == []
    make_run("0", 0, split="train", found={"ece": 0.01, "accuracy": 0.9, "step": 2})  # of an earlier checkpoint
    assert gaps(panel_of()) == []


@pytest.mark.parametrize("metric", ["accuracy", "confidence", "ece"])
def test_a_metric_that_is_not_finite_leaves_its_predictions_out(make_run, panel_of, metric):
    for split in ("val", "train"):
        make_run("0", 0, split=split, found={metric: {"value": None}})
    make_run("1", 0, loss__label_smoothing=0.1)
    panel = panel_of()
    assert len(smoothed_cells(panel)) == (metric == "ece")
    assert len(gaps(panel)) == (metric == "confidence")
