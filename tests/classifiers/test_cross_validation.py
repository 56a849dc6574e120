"""Who may see what in a cross-validation, and its figures against other libraries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.cross_validation_coverage import risk, simulate
from nanolm.classifiers.calibration_sizes import temperature_by_size
from nanolm.classifiers.cross_validation import CrossValidation, FoldModel, make_folds
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.learner import EpochSums
from nanolm.errors import DataError, NonFiniteError
from nanolm.evaluation import FittedTemperature
from nanolm.metrics import GroupedMeter


def trained(dataset, config):
    validation = CrossValidation(dataset, config)
    lines = [validation.train_epoch(epoch) for epoch in range(1, config.task.epochs + 1)]
    validation.finish()
    return validation, lines


def train_fold(dataset, fold, config):
    model = FoldModel(dataset, fold, config, seed=3)
    for epoch in range(1, config.task.epochs + 1):
        model.learner.train_epoch(epoch, EpochSums(GroupedMeter(1)))
    return model


def probabilities(model, temperature=1.0):
    logits = model.learner.logits(model.scored[0])
    return (logits / temperature).softmax(dim=1).numpy()


def test_folds_share_nothing_and_score_each_example_once_a_repeat(overlapping, tiny_baseline):
    config = tiny_baseline().cross_validation
    folds = make_folds(overlapping, config, seed=0)
    assert len(folds) == 6
    for fold in folds:
        parts = np.concatenate([fold.learning, fold.calibration, fold.scored])
        np.testing.assert_array_equal(np.sort(parts), np.arange(150))
        for part in (fold.learning, fold.calibration, fold.scored):
            shares = np.bincount(overlapping.labels[part], minlength=3) / len(part)
            np.testing.assert_allclose(shares, [40 / 150, 50 / 150, 60 / 150], atol=0.05)
    for repeat in (0, 1):
        scored = np.concatenate([fold.scored for fold in folds if fold.repeat == repeat])
        np.testing.assert_array_equal(np.sort(scored), np.arange(150))
    assert not np.array_equal(folds[0].scored, folds[3].scored)
    again, other = make_folds(overlapping, config, seed=0), make_folds(overlapping, config, seed=1)
    np.testing.assert_array_equal(folds[0].calibration, again[0].calibration)
    assert not np.array_equal(folds[0].scored, other[0].scored)


def test_nothing_is_fitted_on_the_scored_fold(overlapping, tiny_baseline):
    """Whatever the scored examples are, weights, scale and temperature stay the same in every bit."""
    config = tiny_baseline("task=softmax")
    fold = make_folds(overlapping, config.cross_validation, seed=0)[0]
    features, labels = overlapping.features.copy(), overlapping.labels.copy()
    features[fold.scored] = 1e3 * np.random.default_rng(5).normal(size=features[fold.scored].shape)
    labels[fold.scored] = (labels[fold.scored] + 1) % 3
    before = train_fold(overlapping, fold, config)
    after = train_fold(replace(overlapping, features=features, labels=labels), fold, config)
    assert before.fit_temperature() == after.fit_temperature()
    torch.testing.assert_close(before.calibration_logits(), after.calibration_logits(), rtol=0, atol=0)
    for one, other in zip(before.learner.model.parameters(), after.learner.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(before.scored[0], after.scored[0])

    labels = overlapping.labels.copy()
    labels[fold.calibration] = (labels[fold.calibration] + (np.arange(len(fold.calibration)) % 4 == 0)) % 3
    assert train_fold(replace(overlapping, labels=labels), fold, config).fit_temperature() != before.fit_temperature()


def test_features_are_standardised_by_what_is_learnt_from(overlapping, tiny_baseline):
    fold = make_folds(overlapping, tiny_baseline().cross_validation, seed=0)[0]
    model = FoldModel(overlapping, fold, tiny_baseline("task=softmax"), seed=0)
    torch.testing.assert_close(model.learner.features.mean(dim=0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(model.learner.features.std(dim=0, correction=0), torch.ones(4, dtype=torch.float64))
    mean, deviation = (getattr(overlapping.features[fold.learning], name)(axis=0) for name in ("mean", "std"))
    np.testing.assert_allclose(model.scored[0], (overlapping.features[fold.scored] - mean) / deviation)


def test_the_temperature_of_a_fold_is_the_optimum_of_its_inner_split(overlapping, tiny_baseline):
    config = tiny_baseline("task=softmax", "task.epochs=60")
    model = train_fold(overlapping, make_folds(overlapping, config.cross_validation, seed=0)[0], config)
    logits, targets = model.calibration_logits().numpy(), model.calibration[1].numpy()

    def nll(log_temperature):
        p = torch.from_numpy(logits / np.exp(log_temperature)).softmax(dim=1).numpy()
        return log_loss(targets, p, labels=[0, 1, 2])

    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert model.fit_temperature() == pytest.approx(np.exp(best.x), rel=1e-4)


def test_a_model_twice_too_sure_has_a_temperature_of_two(two_classes, tiny_baseline):
    config = tiny_baseline("cross_validation.calibration_fraction=0.9")
    model = FoldModel(two_classes, make_folds(two_classes, config.cross_validation, 0)[0], config, seed=0)
    mean, deviation = (getattr(two_classes.features[model.fold.learning], name)(axis=0) for name in ("mean", "std"))
    truth = np.array([1.5, -1.0, 0.5])
    linear = model.learner.model.layers[0]
    with torch.no_grad():
        linear.weight[:] = 2 * torch.from_numpy(truth * deviation)
        linear.bias[:] = 2 * float(truth @ mean)
    assert model.fit_temperature() == pytest.approx(2.0, rel=0.25)


def test_the_figures_are_those_of_other_libraries(overlapping, tiny_baseline):
    validation, _ = trained(overlapping, tiny_baseline("task=softmax", "task.epochs=60"))
    found = validation.measure()
    figures = found.values()
    p = np.concatenate([probabilities(model) for model in validation.models])
    softer = np.concatenate(
        [probabilities(m, t) for m, t in zip(validation.models, validation.temperatures, strict=True)]
    )
    y = np.concatenate([model.scored[1].numpy() for model in validation.models])
    assert figures["nll"] == pytest.approx(log_loss(y, p), rel=1e-6)
    assert figures["nll_at_temperature"] == pytest.approx(log_loss(y, softer), rel=1e-6)
    assert figures["calibration_error"] == pytest.approx(log_loss(y, p) - log_loss(y, softer), abs=1e-6)
    assert figures["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(axis=1)))
    assert figures["brier"] == pytest.approx(np.square(p - np.eye(3)[y]).sum(axis=1).mean(), rel=1e-6)
    theirs = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_classes=3, n_bins=15)
    assert figures["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    assert "bits_per_byte" not in figures
    assert validation.score().metrics()["nll"] == pytest.approx(figures["nll"], abs=1e-8)


def test_a_unit_is_an_example_with_all_its_repeats(overlapping, tiny_baseline, tmp_path):
    validation, _ = trained(overlapping, tiny_baseline("task=softmax"))
    measured = validation.measure()
    assert (measured.num_tokens, len(measured.documents)) == (300, 150)
    measured.write_documents(tmp_path / "documents-val.npz")
    with np.load(tmp_path / "documents-val.npz") as documents:
        np.testing.assert_array_equal(documents["num_tokens"], np.full(150, 2))
        sums = np.zeros(150)
        for model in validation.models:
            p = probabilities(model)[np.arange(len(model.fold.scored)), overlapping.labels[model.fold.scored]]
            np.add.at(sums, model.fold.scored, -np.log(p))
        np.testing.assert_allclose(documents["nll_sum"], sums, rtol=1e-9)
    interval = measured.intervals()["nll"]
    assert interval.low < interval.value < interval.high
    assert "150 examples, the 2 repeats of each in one unit" in measured.about_intervals


def test_repeats_narrow_no_interval_as_if_they_were_new_examples(overlapping, tiny_baseline):
    """Four repeats are not four times as many examples: the interval is about as wide as that of one."""
    widths = []
    for repeats in (1, 4):
        config = tiny_baseline("task=softmax", "task.epochs=30", f"cross_validation.repeats={repeats}")
        interval = trained(overlapping, config)[0].measure().intervals()["nll"]
        widths.append(interval.high - interval.low)
    assert widths[1] > 0.75 * widths[0]


@pytest.mark.parametrize("task", ["binary", "softmax"])
def test_calibrators_are_compared_on_the_same_predictions(task, two_classes, overlapping, tiny_baseline):
    dataset = two_classes if task == "binary" else overlapping
    config = tiny_baseline(
        f"task={task}", "task.model=linear", "loss.label_smoothing=0.2", "loss.softcap=20", "task.epochs=40"
    )
    validation, _ = trained(dataset, config)
    rows = {row["calibrator"]: row for row in validation.compare_calibrators()}
    assert list(rows) == ["none", "temperature", "vector scaling", "inverse smoothing"]
    figures = validation.measure().values()
    assert rows["none"]["nll"] == pytest.approx(figures["nll"], rel=1e-6)
    assert rows["temperature"]["nll"] == pytest.approx(figures["nll_at_temperature"], rel=1e-6)
    assert rows["none"]["accuracy"] == pytest.approx(figures["accuracy"])


def test_label_smoothing_is_undone_by_its_inverse_and_by_a_temperature(tiny_baseline):
    """A model that can say any q ends at (1-ε) p + ε/2: ECE is ε (E p_max - 1/2), T < 1, the inverse restores p."""
    generator = np.random.default_rng(0)
    group = generator.integers(3, size=3000)
    p = np.array([0.6, 0.8, 0.9])[group]  # one probability for each group, and one feature for each
    labels = (generator.uniform(size=3000) < p).astype(np.int64)
    groups = Dataset("groups", np.eye(3)[group], labels, ("a", "b", "c"), ("no", "yes"))
    config = tiny_baseline("loss.label_smoothing=0.2", "task.epochs=300", "task.learning_rate=0.05")
    validation, lines = trained(groups, config)
    rows = {row["calibrator"]: row for row in validation.compare_calibrators()}
    assert rows["none"]["ece"] == pytest.approx(0.2 * (p.mean() - 0.5), abs=0.012)
    assert rows["none"]["underconfidence"] > 5 * rows["none"]["overconfidence"]
    assert rows["inverse smoothing"]["ece"] < 0.02
    assert rows["inverse smoothing"]["nll"] < rows["temperature"]["nll"] + 0.002 < rows["none"]["nll"]
    assert validation.pooled_temperature().fit.high < 0.9
    assert lines[-1]["train/objective"] > lines[-1]["train/nll"] + 0.02  # smoothed, and not


def test_the_pooled_temperature_counts_an_example_once(two_classes, tiny_baseline):
    """Repeats put the same examples into inner splits again and again; they are one unit each."""
    fits = []
    for repeats in (1, 4):
        validation, _ = trained(two_classes, tiny_baseline("task.epochs=60", f"cross_validation.repeats={repeats}"))
        found = validation.pooled_temperature()
        assert isinstance(found, FittedTemperature)
        assert found.fit.low < found.fit.temperature < found.fit.high
        assert min(nll for _, nll in found.curve) == pytest.approx(found.fit.nll_at_temperature, rel=1e-6)
        fits.append(found.fit)
    assert fits[0].num_tokens * 4 == fits[1].num_tokens
    ratio = np.log(fits[1].high / fits[1].low) / np.log(fits[0].high / fits[0].low)
    assert ratio > 0.55  # 0.5 if they were four times as many examples


def test_a_fold_that_has_no_temperature_is_scored_as_it_is(tiny_baseline):
    labels = np.repeat([0, 1], 60)
    easy = Dataset("easy", (2.0 * labels - 1)[:, None] + 0.01, labels, ("x",), ("no", "yes"))
    validation, _ = trained(easy, tiny_baseline())
    assert all(isinstance(found, str) and "all right" in found for found in validation.temperatures)
    measured = validation.measure()
    assert measured.meter_at_temperature is None
    assert "nll_at_temperature" not in measured.values()
    assert isinstance(validation.pooled_temperature(), str)
    rows = {row["calibrator"]: row for row in validation.compare_calibrators()}
    assert "nll" not in rows["temperature"]


def test_early_stopping_keeps_the_best_weights_of_the_inner_split(overlapping, tiny_baseline):
    config = tiny_baseline("task=softmax", "task.epochs=200", "task.learning_rate=0.03", "task.patience=10")
    fold = make_folds(overlapping, config.cross_validation, seed=0)[0]
    model = FoldModel(overlapping, fold, config, seed=0)
    seen = []
    for epoch in range(1, 201):
        model.learner.train_epoch(epoch, EpochSums(GroupedMeter(1)))
        if model.learner.stopped_at is not None:
            break
        seen.append(log_loss(model.calibration[1], model.calibration_logits().softmax(dim=1), labels=[0, 1, 2]))
    best = int(np.argmin(seen))
    assert model.learner.stopped_at == best + 1
    assert len(seen) == best + 10
    kept = log_loss(model.calibration[1], model.calibration_logits().softmax(dim=1), labels=[0, 1, 2])
    assert kept == pytest.approx(min(seen))

    short = CrossValidation(overlapping, tiny_baseline("task=softmax", "task.epochs=3", "task.patience=10"))
    for epoch in (1, 2, 3):
        short.train_epoch(epoch)
    short.finish()
    assert all(model.learner.stopped_at is not None for model in short.models)


def test_folds_are_fitted_independently_and_repeatably(overlapping, tiny_baseline):
    """With dropout and batches in random order: a fold trained alone is the fold trained among the others."""
    config = tiny_baseline("task=softmax", "task.dropout=0.5", "task.batch_size=16")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, lines = trained(overlapping, config)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    two, again = trained(overlapping, config)
    assert lines == again
    assert one.measure().values() == two.measure().values()
    alone = CrossValidation(overlapping, config).models[4]
    for epoch in range(1, config.task.epochs + 1):
        alone.learner.train_epoch(epoch, EpochSums(GroupedMeter(1)))
    assert torch.equal(alone.calibration_logits(), one.models[4].calibration_logits())
    other, _ = trained(overlapping, tiny_baseline("task=softmax", "task.dropout=0.5", "task.batch_size=16", "seed=1"))
    assert other.measure().values() != one.measure().values()


def test_training_lines_are_figures_of_all_folds(overlapping, tiny_baseline):
    validation, lines = trained(
        overlapping, tiny_baseline("task=softmax", "task.l2=0.1", "task.model=linear", "task.batch_size=null")
    )
    assert lines[0]["examples"] == sum(len(model.fold.learning) for model in validation.models)
    assert lines[0]["train/nll"] == pytest.approx(np.log(3))  # before the first step, all at once
    assert lines[-1]["train/objective"] > lines[-1]["train/nll"]  # the penalty
    assert lines[-1]["train/nll"] < lines[0]["train/nll"]
    assert lines[-1]["train/weight_norm"] > 0


@pytest.mark.parametrize(
    ("counts", "overrides", "told"),
    [
        (
            [50, 2],
            ["cross_validation.folds=3"],
            "at least 3 examples of each class for cross_validation.folds=3, found 2",
        ),
        (
            [50, 3],
            ["cross_validation.folds=2"],
            "at least 4 examples of each class for cross_validation.folds=2, found 3",
        ),
        ([6, 6], ["cross_validation.calibration_fraction=0.05"], "calibration_fraction=0.05: expected at least one"),
        ([6, 6], ["cross_validation.calibration_fraction=0.95"], "calibration_fraction=0.95: expected at least one"),
    ],
)
def test_too_few_examples_for_the_folds(counts, overrides, told, tiny_baseline):
    labels = np.repeat([0, 1], counts)
    dataset = Dataset("few", np.zeros((len(labels), 1)), labels, ("x",), ("common", "rare"))
    with pytest.raises(DataError) as raised:
        CrossValidation(dataset, tiny_baseline(*overrides))
    assert told in str(raised.value)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_the_fewest_examples_that_are_enough(folds, tiny_baseline):
    labels = np.repeat([0, 1], max(folds, int(np.ceil(2 * folds / (folds - 1)))))
    dataset = Dataset("few", np.arange(len(labels), dtype=float)[:, None], labels, ("x",), ("a", "b"))
    config = tiny_baseline(f"cross_validation.folds={folds}", "cross_validation.calibration_fraction=0.4")
    assert len(CrossValidation(dataset, config).models) == 2 * folds


def test_a_loss_that_is_not_finite_names_the_learning_rate(overlapping, tiny_baseline):
    validation = CrossValidation(overlapping, tiny_baseline("task=softmax", "task.learning_rate=1e200"))
    with pytest.raises(NonFiniteError, match=r"task\.learning_rate"):
        all(validation.train_epoch(epoch) for epoch in range(1, 5))


def test_a_temperature_from_all_calibration_examples_is_the_folds_and_from_few_scatters(overlapping, tiny_baseline):
    validation, _ = trained(overlapping, tiny_baseline("task=softmax"))
    sizes = [len(model.calibration[1]) for model in validation.models]
    found = temperature_by_size(validation, [min(sizes), 12, max(sizes) + 1])
    assert [entry["num_tokens"] for entry in found] == [12, min(sizes)]
    few, whole = found
    fitted = [t for t in validation.temperatures if isinstance(t, float)]
    assert len(set(sizes)) == 1
    for draw in whole["draws"]:
        assert draw["num_refused"] == len(sizes) - len(fitted)
        assert draw["temperature"] == pytest.approx(math.exp(np.mean(np.log(fitted))), rel=1e-3)
        assert draw["nll"] == pytest.approx(validation.measure().values()["nll_at_temperature"], rel=1e-4)
    assert few["nll_at_one"] == pytest.approx(validation.measure().values()["nll"], rel=1e-7)
    assert len({draw["temperature"] for draw in few["draws"]}) == 5
    assert temperature_by_size(validation, [12]) == [few]


def test_a_fold_without_a_temperature_counts_as_it_is(overlapping, tiny_baseline):
    """All right: a temperature of one or two examples is refused in some folds, and nothing fails."""
    features = overlapping.features + 50 * np.eye(3, 4)[overlapping.labels]
    validation, _ = trained(replace(overlapping, features=features), tiny_baseline("task=softmax", "task.epochs=60"))
    (found,) = temperature_by_size(validation, [1])
    for draw in found["draws"]:
        assert draw == {"temperature": None, "nll": None, "num_refused": len(validation.models)}


def test_the_coverage_benchmark_compares_intervals_with_the_risk_of_the_models(two_classes, tiny_baseline):
    config = tiny_baseline("cross_validation.repeats=1")
    metrics, expected, ratio = simulate(config, 80, seed=0)
    assert ratio == pytest.approx((80 / 3) / (80 * 2 / 3 * 0.8), rel=0.05)
    for name in ("nll", "accuracy", "brier"):
        assert abs(metrics[name]["value"] - expected[name]) < 4 * (metrics[name]["high"] - metrics[name]["low"]) / 3.92
    # The risk of models is the mean loss over many labels that are drawn anew.
    validation, _ = trained(two_classes, config)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(20_000, 3))
    truth = 1 / (1 + np.exp(-features @ np.array([1.5, -1.0, 0.5])))
    labels = (generator.uniform(size=len(truth)) < truth).astype(int)
    found, drawn = risk(validation, features, truth), risk(validation, features, labels)
    assert found == pytest.approx(drawn, abs=0.02)
    plain = validation.measure().figures_json()
    assert found["nll"] == pytest.approx(plain["nll"]["value"], abs=0.1)
