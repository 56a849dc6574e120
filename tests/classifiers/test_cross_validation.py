"""What each part of a cross-validation may see, and its metrics against other libraries."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks.cross_validation_coverage import risk, simulate
from nanolm.classifiers import CrossValidation, Dataset, make_folds
from nanolm.classifiers.learner import Learner
from nanolm.errors import DataError, NonFiniteError
from nanolm.metrics.measurement import read_units
from nanolm.metrics.tally import column
from nanolm.objective import loss_options


def new_learner(dataset, config, fold=None):
    """A learner that has not begun, of the first fold if none is given."""
    fold = fold or make_folds(dataset, config.cross_validation, seed=0)[0]
    return Learner(dataset, fold, config.task, loss_options(config.loss), seed=3)


def train_fold(dataset, config, fold=None):
    model = new_learner(dataset, config, fold)
    model.fit(config.task.epochs)
    return model


def probabilities(model, temperature=1.0):
    return (model.predict(model.scored)[0] / temperature).softmax(dim=1).numpy()


def weights(model):
    return list(model.model.parameters())


def widths(interval):
    return interval.high - interval.low


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
    before = train_fold(overlapping, config, fold)
    after = train_fold(replace(overlapping, features=features, labels=labels), config, fold)
    assert before.calibration == after.calibration
    assert torch.equal(before.predict(before.inner)[0], after.predict(after.inner)[0])
    assert all(torch.equal(one, other) for one, other in zip(weights(before), weights(after), strict=True))
    assert not torch.equal(before.scored[0], after.scored[0])

    labels = overlapping.labels.copy()
    labels[fold.calibration] = (labels[fold.calibration] + (np.arange(len(fold.calibration)) % 4 == 0)) % 3
    assert train_fold(replace(overlapping, labels=labels), config, fold).calibration != before.calibration


def test_features_are_standardised_by_what_is_learned_from(overlapping, tiny_baseline):
    model = new_learner(overlapping, tiny_baseline("task=softmax"))
    learning, scored = (overlapping.features[part] for part in (model.fold.learning, model.fold.scored))
    for found, features in ((model.learning[0], learning), (model.scored[0], scored)):
        np.testing.assert_allclose(found, (features - learning.mean(axis=0)) / learning.std(axis=0))


@pytest.mark.parametrize("task", ["binary", "softmax"])
def test_the_temperature_of_a_fold_is_the_optimum_of_its_inner_split(task, two_classes, overlapping, tiny_baseline):
    dataset = two_classes if task == "binary" else overlapping
    model = train_fold(dataset, tiny_baseline(f"task={task}", "task.epochs=60"))
    logits, targets = (part.numpy() for part in model.predict(model.inner))

    def nll(log_temperature):
        z = logits / np.exp(log_temperature)
        return log_loss(targets, expit(z) if task == "binary" else softmax(z, axis=1))

    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    assert model.calibration.value == pytest.approx(np.exp(best.x), rel=1e-4)


def test_the_metrics_are_those_of_other_libraries(overlapping, trained):
    validation, _ = trained(overlapping, "task=softmax", "task.epochs=60")
    found = validation.measure().metrics()
    p = np.concatenate([probabilities(model) for model in validation.models])
    softer = np.concatenate([probabilities(model, model.calibration.value or 1.0) for model in validation.models])
    y = np.concatenate([model.scored[1].numpy() for model in validation.models])
    assert found["nll"] == pytest.approx(log_loss(y, p), rel=1e-6)
    assert found["nll_at_temperature"] == pytest.approx(log_loss(y, softer), rel=1e-6)
    assert found["calibration_error"] == pytest.approx(log_loss(y, p) - log_loss(y, softer), abs=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy_score(y, p.argmax(axis=1)))
    assert found["brier"] == pytest.approx(np.square(p - np.eye(3)[y]).sum(axis=1).mean(), rel=1e-6)
    theirs = multiclass_calibration_error(torch.from_numpy(p), torch.from_numpy(y), num_classes=3, n_bins=15)
    assert found["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    assert "bits_per_byte" not in found
    assert validation.score()["nll"] == pytest.approx(found["nll"], abs=1e-8)


def test_a_unit_is_an_example_with_all_its_repeats(overlapping, trained, tmp_path):
    validation, _ = trained(overlapping, "task=softmax")
    measured = validation.measure()
    measured.write_units(tmp_path / "documents-val.npz")
    rows, _ = read_units(tmp_path / "documents-val.npz")
    np.testing.assert_array_equal(column(rows, "tokens"), np.full(150, 2))
    sums = np.zeros(150)
    for model in validation.models:
        p = probabilities(model)[np.arange(len(model.fold.scored)), overlapping.labels[model.fold.scored]]
        np.add.at(sums, model.fold.scored, -np.log(p))
    np.testing.assert_allclose(column(rows, "nll"), sums, rtol=1e-9)
    assert "150 examples" in measured.about_intervals
    assert "2 repeats" in measured.about_intervals


def test_repeats_narrow_no_interval_as_if_they_were_new_examples(overlapping, trained):
    """Four repeats are not four times as many examples: the interval is about as wide as that of one."""
    one, four = (
        trained(overlapping, "task=softmax", "task.epochs=30", f"cross_validation.repeats={repeats}")[0]
        .measure()
        .intervals()["nll"]
        for repeats in (1, 4)
    )
    assert one.low < one.value < one.high
    assert widths(four) > 0.75 * widths(one)


@pytest.mark.parametrize("task", ["binary", "softmax"])
def test_calibrators_are_compared_on_the_same_predictions(task, two_classes, overlapping, trained):
    overrides = ["task.model=linear", "loss.label_smoothing=0.2", "loss.softcap=20", "task.epochs=40"]
    validation, _ = trained(two_classes if task == "binary" else overlapping, f"task={task}", *overrides)
    rows = {row.calibrator: row for row in validation.compare_calibrators()}
    assert list(rows) == ["none", "temperature", "vector scaling", "inverse smoothing"]
    found = validation.measure().metrics()
    assert rows["none"].nll == pytest.approx(found["nll"], rel=1e-6)
    assert rows["temperature"].nll == pytest.approx(found["nll_at_temperature"], rel=1e-6)
    assert rows["none"].accuracy == pytest.approx(found["accuracy"])


def test_label_smoothing_is_undone_by_its_inverse_and_by_a_temperature(trained):
    """A model that can say any q ends at (1-ε) p + ε/2: ECE is ε (E p_max - 1/2), T < 1, the inverse restores p."""
    generator = np.random.default_rng(0)
    group = generator.integers(3, size=3000)
    p = np.array([0.6, 0.8, 0.9])[group]  # one probability for each group, and one feature for each
    labels = (generator.uniform(size=3000) < p).astype(np.int64)
    groups = Dataset("groups", np.eye(3)[group], labels, ("a", "b", "c"), ("no", "yes"))
    validation, lines = trained(groups, "loss.label_smoothing=0.2", "task.epochs=300", "task.learning_rate=0.05")
    rows = {row.calibrator: row for row in validation.compare_calibrators()}
    expected = 0.2 * (p.mean() - 0.5)
    assert rows["none"].ece == pytest.approx(expected, abs=0.012)
    assert rows["none"].accuracy - rows["none"].confidence == pytest.approx(expected, abs=0.012)
    assert rows["inverse smoothing"].ece < 0.02
    assert rows["inverse smoothing"].nll < rows["temperature"].nll + 0.002 < rows["none"].nll
    assert validation.pooled_calibration().temperature.high < 0.9
    assert lines[-1]["train/objective"] > lines[-1]["train/nll"] + 0.02  # smoothed, and not


def test_the_pooled_temperature_counts_an_example_once(two_classes, trained):
    """Repeats put the same examples into inner splits again and again; they are one unit each."""
    one, four = (
        trained(two_classes, "task.epochs=60", f"cross_validation.repeats={repeats}")[0].pooled_calibration()
        for repeats in (1, 4)
    )
    for found in (one, four):
        assert found.temperature.low < found.value < found.temperature.high
        assert min(found.curve.nll) == pytest.approx(found.nll_at_temperature, rel=1e-6)
    assert one.num_tokens * 4 == four.num_tokens
    ratio = np.log(four.temperature.high / four.temperature.low) / np.log(one.temperature.high / one.temperature.low)
    assert ratio > 0.55  # 0.5 if they were four times as many examples


def test_folds_without_a_temperature_are_scored_as_they_are(trained):
    labels = np.repeat([0, 1], 60)
    easy = Dataset("easy", (2.0 * labels - 1)[:, None] + 0.01, labels, ("x",), ("no", "yes"))
    validation, _ = trained(easy)
    assert all(model.calibration.reason for model in validation.models)
    measured = validation.measure()
    assert measured.meter_at_temperature is None
    assert "nll_at_temperature" not in measured.metrics()
    assert validation.pooled_calibration().value is None
    rows = {row.calibrator: row for row in validation.compare_calibrators()}
    assert math.isnan(rows["temperature"].nll)


def test_early_stopping_keeps_the_best_weights_of_the_inner_split(overlapping, tiny_baseline, trained):
    config = tiny_baseline("task=softmax", "task.epochs=200", "task.learning_rate=0.03", "task.patience=10")
    model, seen = new_learner(overlapping, config), []

    def inner_nll():
        logits, targets = model.predict(model.inner)
        return log_loss(targets, logits.softmax(dim=1))

    for epoch in range(1, 201):
        model.train_epoch(epoch)
        if model.stopped_at is not None:
            break
        seen.append(inner_nll())
    best = int(np.argmin(seen))
    assert model.stopped_at == best + 1
    assert len(seen) == best + 10
    assert inner_nll() == pytest.approx(min(seen))
    short, _ = trained(overlapping, "task=softmax", "task.epochs=3", "task.patience=10")
    assert all(model.stopped_at is not None for model in short.models)


def test_folds_are_fitted_independently_and_repeatably(overlapping, trained, tiny_baseline):
    """With dropout and batches in random order: a fold trained alone is the fold trained among the others."""
    overrides = ["task=softmax", "task.dropout=0.5", "task.batch_size=16"]
    state = torch.get_rng_state()
    one, lines = trained(overlapping, *overrides)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    two, again = trained(overlapping, *overrides)
    assert lines == again
    assert one.measure().metrics() == two.measure().metrics()
    config = tiny_baseline(*overrides)
    alone = CrossValidation(overlapping, config).models[4]
    alone.fit(config.task.epochs)
    assert torch.equal(alone.predict(alone.inner)[0], one.models[4].predict(alone.inner)[0])
    other, _ = trained(overlapping, *overrides, "seed=1")
    assert other.measure().metrics() != one.measure().metrics()


def test_training_lines_are_metrics_of_all_folds(overlapping, tiny_baseline):
    overrides = ["task=softmax", "task.l2=0.1", "task.model=linear", "task.batch_size=null"]
    validation = CrossValidation(overlapping, tiny_baseline(*overrides))
    (num_examples, first), *_, (_, last) = [validation.train_epoch(epoch) for epoch in range(1, 9)]
    assert num_examples == sum(len(model.fold.learning) for model in validation.models)
    assert first["train/nll"] == pytest.approx(np.log(3))  # before the first step, all at once
    assert last["train/nll"] < first["train/nll"]
    norms = [weights(model)[0].detach().norm() for model in validation.models]  # without the biases
    assert last["train/weight_norm"] == pytest.approx(np.mean(norms))
    penalty = 0.1 / 2 * np.mean(np.square(norms))  # of the weights before the next step
    _, line = validation.train_epoch(9)
    assert line["train/objective"] - line["train/nll"] == pytest.approx(penalty)


def few(counts):
    labels = np.repeat([0, 1], counts)
    return Dataset("few", np.arange(len(labels), dtype=float)[:, None], labels, ("x",), ("common", "rare"))


@pytest.mark.parametrize(
    ("counts", "key", "named"),
    [
        ([50, 2], "cross_validation.folds=3", ["at least 3", "found 2", "'rare'"]),
        ([50, 3], "cross_validation.folds=2", ["at least 4", "found 3", "'rare'"]),
        ([6, 6], "cross_validation.calibration_fraction=0.05", []),
        ([6, 6], "cross_validation.calibration_fraction=0.95", []),
    ],
)
def test_too_few_examples_for_the_folds(counts, key, named, tiny_baseline):
    with pytest.raises(DataError) as raised:
        CrossValidation(few(counts), tiny_baseline(key))
    for word in (key, *named):
        assert word in str(raised.value)


@pytest.mark.parametrize(("folds", "enough"), [(2, 4), (3, 3), (5, 5)])
def test_the_fewest_examples_that_are_enough(folds, enough, tiny_baseline):
    config = tiny_baseline(f"cross_validation.folds={folds}", "cross_validation.calibration_fraction=0.4")
    assert len(CrossValidation(few(enough), config).models) == 2 * folds


def test_a_loss_that_is_not_finite_names_the_learning_rate(overlapping, trained):
    with pytest.raises(NonFiniteError, match=r"task\.learning_rate"):
        trained(overlapping, "task=softmax", "task.learning_rate=1e200")


def test_a_temperature_from_all_calibration_examples_is_the_folds_and_from_few_scatters(overlapping, trained):
    validation, _ = trained(overlapping, "task=softmax")
    (size,) = {len(model.fold.calibration) for model in validation.models}
    few, whole = validation.temperature_by_size([size, 12, size + 1])
    assert (few.num_tokens, whole.num_tokens) == (12, size)
    fitted = [model.calibration.value for model in validation.models if model.calibration.value]
    found = validation.measure().metrics()
    for draw in whole.draws:
        assert draw.num_refused == len(validation.models) - len(fitted)
        assert draw.temperature == pytest.approx(math.exp(np.mean(np.log(fitted))), rel=1e-3)
        assert draw.nll == pytest.approx(found["nll_at_temperature"], rel=1e-4)
    assert few.nll_at_one == pytest.approx(found["nll"], rel=1e-7)
    assert len({draw.temperature for draw in few.draws}) == 5
    assert validation.temperature_by_size([12]) == [few]


def test_a_draw_that_every_fold_refuses_has_no_temperature(overlapping, trained):
    features = overlapping.features + 50 * np.eye(3, 4)[overlapping.labels]
    validation, _ = trained(replace(overlapping, features=features), "task=softmax", "task.epochs=60")
    (found,) = validation.temperature_by_size([1])
    for draw in found.draws:
        assert (draw.temperature, draw.nll, draw.num_refused) == (None, None, 6)


def test_the_coverage_benchmark_compares_intervals_with_the_risk_of_the_models(two_classes, trained, tiny_baseline):
    metrics, expected, ratio = simulate(tiny_baseline("cross_validation.repeats=1"), 80, seed=0)
    assert ratio == pytest.approx((80 / 3) / (80 * 2 / 3 * 0.8), rel=0.05)
    for name in ("nll", "accuracy", "brier"):
        assert abs(metrics[name].value - expected[name]) < 4 * widths(metrics[name]) / 3.92
    # The risk of models is the mean loss over many labels that are drawn anew.
    validation, _ = trained(two_classes, "cross_validation.repeats=1")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(20_000, 3))
    truth = 1 / (1 + np.exp(-features @ np.array([1.5, -1.0, 0.5])))
    labels = (generator.uniform(size=len(truth)) < truth).astype(int)
    found = risk(validation, features, truth)
    assert found == pytest.approx(risk(validation, features, labels), abs=0.02)
    assert found["nll"] == pytest.approx(validation.measure().metrics()["nll"], abs=0.1)
