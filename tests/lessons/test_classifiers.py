import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from nanolm.lessons import classifiers

X = np.array([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
Y = np.array([0, 0, 1, 0, 1, 0, 1, 1])


def test_binary_cross_entropy_four_ways(cells):
    labels, p = np.array([1, 0, 1, 1, 0]), scipy.special.expit([2.0, -1.0, 0.5, -0.3, 1.2])
    expected = -np.mean(scipy.stats.bernoulli(p).logpmf(labels))
    assert cells(classifiers.binary_cross_entropy(), "NLL per example") == pytest.approx([expected] * 4, abs=1e-11)


def test_the_fit_by_hand_is_scikit_learns(cells):
    step = classifiers.logistic_regression()
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(X[:, None], Y).predict_proba(X[:, None])[:, 1]
    assert cells(step, "ŷ") == pytest.approx(expected, abs=1e-4)
    assert cells(step, "ŷ - y") == pytest.approx(expected - Y, abs=1e-4)


def test_three_ways_find_one_optimum(cells):
    step = classifiers.one_optimum()
    assert cells(step, "by", str) == ["NumPy", "torch", "scikit-learn"] * 2
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)

    def nll(parameters, features):
        z = features @ parameters[:-1] + parameters[-1]
        return np.mean(np.logaddexp(0, z) - y * z)

    def penalised(parameters, features, l2):
        return nll(parameters, features) + l2 / 2 * parameters[:-1] @ parameters[:-1]

    for place, (features, l2) in enumerate(((X[:, :2], 0.0), (X, 0.05))):
        start = np.zeros(features.shape[1] + 1)
        best = scipy.optimize.minimize(penalised, start, args=(features, l2), tol=1e-9).x
        expected = {"NLL": nll(best, features), "norm of weights": np.linalg.norm(best[:-1]), "bias": best[-1]}
        for name, value in expected.items():
            assert cells(step, name)[3 * place : 3 * place + 3] == pytest.approx([value] * 3, abs=1e-4)


def test_only_differences_of_logits_matter(cells, curve):
    step = classifiers.softmax_scores()
    logits = ([2, 1, 0], [2, 2, 0], [3, 1, 0], [102, 101, 100])
    expected = [-scipy.special.log_softmax(np.array(z, dtype=float))[1] for z in logits]
    nll = cells(step, "NLL of the second")
    assert nll == pytest.approx(expected, abs=1e-6)
    base, own_raised, rival_raised, all_raised = nll
    assert own_raised < base == all_raised < rival_raised
    assert np.all(np.diff(curve(step, "its own, in [2, ·, 0]")[1]) < 0)
    assert np.all(np.diff(curve(step, "a rival's, in [·, 1, 0]")[1]) > 0)


def test_the_softmax_gradient_three_ways(cells):
    seen = []
    for seed in range(3):
        step = classifiers.softmax_gradient(seed)
        assert all(identity.holds for identity in step.identities)
        logits = cells(step, "logit")
        assert logits not in seen
        seen.append(logits)
        for way in ("p - y", "numerically", "softmax_nll"):
            assert cells(step, way) == pytest.approx(scipy.special.softmax(logits) - np.eye(5)[2], abs=1e-4)
