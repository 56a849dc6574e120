"""Logistic regression in NumPy and in torch, against scikit-learn and against each other."""

import warnings

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from nanolm.classifiers import LogisticRegressionNLL, LogisticRegressionTorch
from nanolm.classifiers.agreement import three_ways
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.logistic import sigmoid
from nanolm.loss import LossOptions

BOTH = pytest.mark.parametrize("kind", [LogisticRegressionNLL, LogisticRegressionTorch])


@pytest.fixture(scope="module")
def cancer():
    data = load_breast_cancer()
    return StandardScaler().fit_transform(data.data), data.target


def test_the_sigmoid_cannot_overflow():
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        np.testing.assert_array_equal(sigmoid([-1000, 0, 1000, -np.inf, np.inf]), [0, 0.5, 1, 0, 1])
        assert sigmoid(-700.0) == pytest.approx(np.exp(-700.0), rel=1e-12)  # small, and not yet 0
    z = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(sigmoid(z), 1 / (1 + np.exp(-z)), rtol=1e-14)


def test_the_nll_of_a_sure_mistake_is_finite():
    model = LogisticRegressionNLL(1)
    model.weights[:] = 1.0
    assert model.nll(np.array([[1000.0], [-1000.0]]), [0, 1]) == 1000
    assert model.nll(np.array([[1000.0], [-1000.0]]), [1, 0]) == 0


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gradient_is_that_of_finite_differences(cancer, l2):
    X, y = cancer[0][:, :5], cancer[1]
    model = LogisticRegressionNLL(5)
    at = np.random.default_rng(0).normal(size=6)

    def objective(parameters):
        model.weights, model.bias = parameters[:5], parameters[5]
        return model.nll(X, y) + l2 / 2 * parameters[:5] @ parameters[:5]

    numeric = approx_fprime(at, objective, 1e-7)
    objective(at)
    weights, bias = model.gradient(X, y, l2)
    np.testing.assert_allclose([*weights, bias], numeric, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("columns", "l2"), [(2, 0.0), (30, 0.05)], ids=["two overlapping features", "all features, equal L2"]
)
def test_it_finds_the_optimum_that_scikit_learn_finds(kind, columns, l2, cancer):
    X, y = cancer[0][:, :columns], cancer[1]
    theirs = LogisticRegression(C=1 / (len(X) * l2) if l2 else np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    ours = kind(columns).fit(X, y, lr=0.28, epochs=2500, l2=l2)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=1e-4)
    assert ours.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X)[:, 1], atol=1e-4)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


def test_numpy_and_torch_take_the_same_steps(cancer):
    X, y = cancer
    in_numpy, in_torch = (
        kind(30).fit(X, y, epochs=50, l2=0.01) for kind in (LogisticRegressionNLL, LogisticRegressionTorch)
    )
    np.testing.assert_allclose(in_numpy.weights, in_torch.weights, rtol=1e-12)
    assert in_numpy.bias == pytest.approx(in_torch.bias, rel=1e-12)


def test_the_nll_is_scikit_learns_log_loss(cancer):
    X, y = cancer
    model = LogisticRegressionNLL(30).fit(X, y, epochs=100)
    assert model.nll(X, y) == pytest.approx(log_loss(y, model.predict_proba(X)), rel=1e-10)


@BOTH
def test_the_threshold_itself_is_class_one(kind):
    model, X = kind(1), np.array([[1.0], [-1.0]])
    np.testing.assert_array_equal(model.predict(X), [1, 1])  # untrained: exactly one half
    np.testing.assert_array_equal(model.predict(X, threshold=0.500001), [0, 0])


def test_labels_may_be_a_column_and_fits_go_on(cancer):
    X, y = cancer
    whole = LogisticRegressionNLL(30).fit(X, y, epochs=20)
    parts = LogisticRegressionNLL(30).fit(X, y[:, None], epochs=5).fit(X, y, epochs=15)
    np.testing.assert_array_equal(whole.weights, parts.weights)


def test_the_full_set_is_separable_and_has_no_optimum(cancer):
    """A hardly penalised fit makes no mistake; gradient descent grows for as long as it goes on."""
    X, y = cancer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no convergence: that is the point
        separating = LogisticRegression(C=1e10, max_iter=20_000, tol=1e-12).fit(X, y)
    assert separating.score(X, y) == 1.0
    model, norms, scores, nll = LogisticRegressionNLL(30), [], [], []
    for epochs in (1000, 3000, 12_000):
        model.fit(X, y, lr=0.5, epochs=epochs)
        norms.append(np.linalg.norm(model.weights))
        scores.append((model.predict(X) == y).mean())
        nll.append(model.nll(X, y))
    assert norms[1] > 1.3 * norms[0]
    assert norms[2] > 1.3 * norms[1]
    assert nll[0] > nll[1] > nll[2]
    assert max(scores) - min(scores) < 0.006  # three examples of 569
    held = [LogisticRegressionNLL(30).fit(X, y, lr=0.28, epochs=e, l2=0.05).weights for e in (2000, 4000)]
    np.testing.assert_allclose(held[0], held[1], atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_optimum_of_label_smoothing(smoothing):
    """Of a model that knows nothing but the shares of the classes: (1-ε) p + ε/2, here p = 3/4."""
    X, y = np.zeros((8, 1)), np.array([1, 1, 1, 0] * 2)
    model = LogisticRegressionTorch(1).fit(X, y, lr=2.0, epochs=300, options=LossOptions(label_smoothing=smoothing))
    np.testing.assert_allclose(model.predict_proba(X), (1 - smoothing) * 0.75 + smoothing / 2, atol=1e-12)


def test_three_ways_agree_and_a_separable_pair_of_features_is_left_out(cancer):
    X, y = cancer
    names = tuple(map(str, range(30)))
    rows = three_ways(Dataset("cancer", X, y, names, ("a", "b")), l2=0.05)
    assert [row["by"] for row in rows] == ["NumPy", "torch", "scikit-learn"] * 2
    assert max(row["distance"] or 0 for row in rows) < 1e-5
    separable = np.column_stack([2.0 * y - 1, X[:, :2]])
    assert len(three_ways(Dataset("easy", separable, y, names[:3], ("a", "b")), l2=0.05)) == 3
