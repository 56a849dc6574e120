import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nanolm.classifiers import Dataset, load_dataset
from nanolm.classifiers.learner import Examples
from nanolm.classifiers.separation import SMALLEST_GRADIENT, study_separation
from nanolm.classifiers.tables import separation_words
from nanolm.config import load


def made_up(separable, num_examples=150):
    """Two features and a class: the side of a plane, with one label in ten turned round if not separable."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(num_examples, 2))
    score = features.sum(axis=1)
    labels = (score > 0).astype(np.int64)
    if not separable:
        labels ^= generator.uniform(size=num_examples) < 0.1
    return Dataset("made up", features, labels, ("a", "b"), ("no", "yes"))


def study_of(dataset, *overrides):
    seen = []
    config = load("baseline", [*overrides])
    return study_separation(dataset, config, lambda done, total: seen.append((done, total))), seen


@pytest.fixture(scope="module")
def separable():
    return study_of(made_up(separable=True), "separation.epochs=1500")


@pytest.fixture(scope="module")
def breast_cancer():
    dataset = load_dataset(load("baseline").task)
    return study_of(dataset, "separation.epochs=600", "separation.l2=0.05"), dataset


def test_separable_data_are_separated_and_followed_well_beyond(separable):
    found = separable[0]
    free = found["fits"][0]
    curves = {name: np.array(values) for name, values in free["curves"].items()}
    assert free["name"] == "maximum likelihood"
    assert free["final"]["train_accuracy"] == 1
    assert 1 < found["separated_at"] < free["epoch"] / 3
    beyond = np.array(found["epochs"]) >= found["separated_at"]
    for name in ("weight_norm", "margin", "confidence"):
        assert (np.diff(curves[name][beyond]) > 0).all(), name
    assert curves["weight_norm"][-1] > 2 * curves["weight_norm"][beyond][0]
    for fit in found["fits"][2:]:
        assert fit["final"]["weight_norm"] < 0.7 * free["final"]["weight_norm"]


def test_the_lowest_nll_is_the_minimum_up_to_each_fits_own_end(separable):
    for fit in separable[0]["fits"]:
        assert fit["lowest"]["nll"] == min(fit["curves"]["nll"])
        assert fit["lowest"]["epoch"] <= fit["epoch"]


def test_data_that_no_plane_separates_come_to_rest_and_the_words_say_so(separable):
    found, _ = study_of(made_up(separable=False), "separation.epochs=3000")
    assert found["separated_at"] is None
    assert found["fits"][0]["final"]["train_accuracy"] < 1
    assert found["gradient_norm"] < SMALLEST_GRADIENT
    assert found["fits"][0]["epoch"] < 3000  # it ends there, and so do the others
    assert {fit["epoch"] for fit in found["fits"][2:]} == {found["epochs"][-1]}
    norms = found["fits"][0]["curves"]["weight_norm"]
    assert norms[-1] == pytest.approx(norms[-3], rel=0.01)
    assert "did not separate" in separation_words({"separation": found})[0]
    assert "did not separate" not in separation_words({"separation": separable[0]})[0]
    assert f"epoch {separable[0]['separated_at']:,}" in separation_words({"separation": separable[0]})[0]


def test_the_words_follow_the_numbers(separable):
    found = {**separable[0], "num_scored": 30}
    free = found["fits"][0]
    rising = {**free, "final": {**free["final"], "nll": 1.25, "accuracy": 0.9}, "lowest": {"epoch": 40, "nll": 0.125}}
    words = " ".join(separation_words({"separation": {**found, "fits": [rising, *found["fits"][1:]]}}))
    assert "lowest, 0.125, at epoch 40 and is 1.25 at the end, where 3 of 30" in words
    falling = {**free, "final": {**free["final"], "nll": 1e-9}, "lowest": {"epoch": free["epoch"], "nll": 1e-9}}
    words = " ".join(separation_words({"separation": {**found, "fits": [falling, *found["fits"][1:]]}}))
    assert "lowest, 1e-09, at the end" in words
    assert "maximum likelihood has the lowest NLL on held-out examples, 1e-09" in words


def test_early_stopping_keeps_what_it_stopped_at(breast_cancer):
    found = breast_cancer[0][0]
    free, stopped, penalised, smoothed = found["fits"]
    assert [fit["epoch"] for fit in (free, penalised, smoothed)] == [600] * 3
    norms = penalised["curves"]["weight_norm"]
    assert norms[-1] == pytest.approx(norms[-4], rel=0.01)
    assert smoothed["final"]["margin"] < np.log(0.95 / 0.05) * 1.1  # the logit of the largest target
    assert free["final"]["margin"] > 2 * np.log(0.95 / 0.05)
    late = [place for place, epoch in enumerate(found["epochs"]) if epoch >= stopped["epoch"]]
    assert 1 < stopped["epoch"] < 600
    for name, values in stopped["curves"].items():
        assert {values[place] for place in late} == {stopped["final"][name]}
        before = min(late)
        assert values[:before] == free["curves"][name][:before]


def test_the_penalised_fit_is_scikit_learns(breast_cancer):
    (found, _), dataset = breast_cancer
    from sklearn.model_selection import train_test_split

    from nanolm.seeds import derive_seed

    state = derive_seed(0, 2) % 2**32
    rest, _ = train_test_split(np.arange(569), test_size=0.2, stratify=dataset.labels, random_state=state)
    learning, _ = train_test_split(rest, test_size=0.25, stratify=dataset.labels[rest], random_state=state)
    X, y = (part.numpy() for part in Examples(dataset, fitted_on=learning)(learning))
    theirs = LogisticRegression(C=1 / (len(X) * 0.05), tol=1e-10, max_iter=10_000).fit(X, y)
    final = found["fits"][2]["final"]
    assert final["weight_norm"] == pytest.approx(np.linalg.norm(theirs.coef_), rel=1e-3)
    assert final["train_accuracy"] == pytest.approx(theirs.score(X, y))


def test_parts_add_up_and_progress_is_told(breast_cancer):
    (found, seen), dataset = breast_cancer
    assert found["num_learning"] + found["num_validation"] + found["num_scored"] == len(dataset) == 569
    assert seen == [(done, 1800) for done in range(1, 1801)]
    assert found["epochs"][0] == 1
    assert found["epochs"][-1] == 600
    assert {len(values) for fit in found["fits"] for values in fit["curves"].values()} == {len(found["epochs"])}
