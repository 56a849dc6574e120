import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nanolm.baselines import load_dataset
from nanolm.baselines.learner import Examples
from nanolm.baselines.separation import study_separation


@pytest.fixture(scope="module")
def study():
    from nanolm.config import load

    config = load("baseline", ["separation.epochs=600", "separation.l2=0.05"])
    dataset = load_dataset(config.task)
    seen = []
    return study_separation(dataset, config, lambda done, total: seen.append((done, total))), dataset, seen


def test_norm_margin_and_confidence_grow_while_accuracy_stands_still(study):
    fit = study[0]["fits"][0]
    late = [epoch >= 30 for epoch in study[0]["epochs"]]
    curves = {name: np.array(values)[late] for name, values in fit["curves"].items()}
    assert fit["name"] == "maximum likelihood"
    for name in ("weight_norm", "margin", "confidence"):
        assert (np.diff(curves[name]) > 0).all(), name
    assert (np.diff(curves["train_nll"]) < 0).all()
    assert np.ptp(curves["accuracy"]) < 0.03
    assert curves["weight_norm"][-1] > 2 * curves["weight_norm"][0]


def test_l2_smoothing_and_early_stopping_hold_it(study):
    found = study[0]
    free, stopped, penalised, smoothed = found["fits"]
    assert [fit["epoch"] for fit in (free, penalised, smoothed)] == [600] * 3
    for fit in (stopped, penalised, smoothed):
        assert fit["final"]["weight_norm"] < 0.7 * free["final"]["weight_norm"]
        assert fit["final"]["margin"] < 0.7 * free["final"]["margin"]
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


def test_the_penalised_fit_is_scikit_learns(study):
    found, dataset, _ = study
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


def test_parts_add_up_and_progress_is_told(study):
    found, dataset, seen = study
    assert found["num_learning"] + found["num_validation"] + found["num_scored"] == len(dataset) == 569
    assert seen == [(done, 1800) for done in range(1, 1801)]
    assert found["epochs"][0] == 1
    assert found["epochs"][-1] == 600
    assert {len(values) for fit in found["fits"] for values in fit["curves"].values()} == {len(found["epochs"])}
