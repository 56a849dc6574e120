import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from nanolm.classifiers import Dataset, load_dataset
from nanolm.classifiers.evaluation import Lowest
from nanolm.classifiers.page import separation_words
from nanolm.classifiers.separation import SMALLEST_GRADIENT, study_separation
from nanolm.config import load
from nanolm.seeds import derive_seed


def made_up(separable, num_examples=150):
    """Two features and a class: the side of a plane, with one label in ten turned round if not separable."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(num_examples, 2))
    labels = (features.sum(axis=1) > 0).astype(np.int64)
    if not separable:
        labels ^= generator.uniform(size=num_examples) < 0.1
    return Dataset("made up", features, labels, ("a", "b"), ("no", "yes"))


@pytest.fixture(scope="module")
def separable():
    return study_separation(made_up(separable=True), load("baseline", ["separation.epochs=1500"]))


@pytest.fixture(scope="module")
def breast_cancer():
    """The study, the dataset, and the progress that it reported."""
    config = load("baseline", ["separation.epochs=600", "separation.l2=0.05"])
    dataset, seen = load_dataset(config.task), []
    return study_separation(dataset, config, lambda done, total: seen.append((done, total))), dataset, seen


def test_separable_data_are_separated_and_followed_well_beyond(separable):
    free = separable.fits[0]
    assert free.name == "maximum likelihood"
    assert free.final.train_accuracy == 1
    assert 1 < separable.separated_at < free.epoch / 3
    beyond = np.array(separable.epochs) >= separable.separated_at
    for name in ("weight_norm", "margin", "confidence"):
        assert (np.diff(np.array(free.curves[name])[beyond]) > 0).all(), name
    assert free.final.weight_norm > 2 * np.array(free.curves["weight_norm"])[beyond][0]
    for fit in separable.fits[2:]:
        assert fit.final.weight_norm < 0.7 * free.final.weight_norm
    for fit in separable.fits:
        assert fit.lowest.nll == min(fit.curves["nll"])
        assert fit.lowest.epoch <= fit.epoch


def test_data_that_no_plane_separates_come_to_rest_and_the_words_say_so(separable):
    found = study_separation(made_up(separable=False), load("baseline", ["separation.epochs=3000"]))
    assert found.separated_at is None
    assert found.fits[0].final.train_accuracy < 1
    assert found.gradient_norm < SMALLEST_GRADIENT
    assert found.fits[0].epoch < 3000  # it ends there, and so do the others
    assert {fit.epoch for fit in found.fits[2:]} == {found.epochs[-1]}
    norms = found.fits[0].curves["weight_norm"]
    assert norms[-1] == pytest.approx(norms[-3], rel=0.01)
    assert "did not separate" in separation_words(found)[0]
    assert "did not separate" not in separation_words(separable)[0]
    assert f"epoch {separable.separated_at:,}" in separation_words(separable)[0]


@pytest.mark.parametrize(
    ("final", "lowest", "words"),
    [
        ({"nll": 1.25, "accuracy": 0.9}, Lowest(epoch=40, nll=0.125), ["0.125", "epoch 40", "1.25", "3 of 30"]),
        ({"nll": 1e-9}, Lowest(epoch=1500, nll=1e-9), ["maximum likelihood has the lowest NLL", "1e-09"]),
    ],
)
def test_the_words_follow_the_numbers(separable, final, lowest, words):
    free, *others = separable.fits
    free = free.model_copy(update={"final": free.final.model_copy(update=final), "lowest": lowest})
    text = " ".join(separation_words(separable.model_copy(update={"num_scored": 30, "fits": [free, *others]})))
    for word in words:
        assert word in text


def test_early_stopping_a_penalty_and_smoothing_hold_what_grows(breast_cancer):
    found, dataset, seen = breast_cancer
    free, stopped, penalised, smoothed = found.fits
    assert [fit.epoch for fit in (free, penalised, smoothed)] == [600] * 3
    norms = penalised.curves["weight_norm"]
    assert norms[-1] == pytest.approx(norms[-4], rel=0.01)
    assert smoothed.final.margin < np.log(0.95 / 0.05) * 1.1  # the logit of the largest target
    assert free.final.margin > 2 * np.log(0.95 / 0.05)
    late = next(place for place, epoch in enumerate(found.epochs) if epoch >= stopped.epoch)
    assert 1 < stopped.epoch < 600
    for name, values in stopped.curves.items():
        assert set(values[late:]) == {getattr(stopped.final, name)}
        assert values[:late] == free.curves[name][:late]
    assert found.num_learning + found.num_validation + found.num_scored == len(dataset) == 569
    assert seen == [(done, 1800) for done in range(1, 1801)]
    assert (found.epochs[0], found.epochs[-1]) == (1, 600)


def test_the_penalised_fit_is_scikit_learns(breast_cancer):
    found, dataset, _ = breast_cancer
    state = derive_seed(0, 2) % 2**32
    rest, _ = train_test_split(np.arange(569), test_size=0.2, stratify=dataset.labels, random_state=state)
    learning, _ = train_test_split(rest, test_size=0.25, stratify=dataset.labels[rest], random_state=state)
    X, y = StandardScaler().fit_transform(dataset.features[learning]), dataset.labels[learning]
    theirs = LogisticRegression(C=1 / (len(X) * 0.05), tol=1e-10, max_iter=10_000).fit(X, y)
    final = found.fits[2].final
    assert final.weight_norm == pytest.approx(np.linalg.norm(theirs.coef_), rel=1e-3)
    assert final.train_accuracy == pytest.approx(theirs.score(X, y))
