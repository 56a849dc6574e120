"""Logistic regression in NumPy and in torch, against scikit-learn and against each other."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from nanolm.lessons import LogisticRegressionNLL, LogisticRegressionTorch
from nanolm.loss import LossOptions

KINDS = (LogisticRegressionNLL, LogisticRegressionTorch)


@pytest.fixture(scope="module")
def cancer():
    data = load_breast_cancer()
    return StandardScaler().fit_transform(data.data), data.target


def test_confident_predictions_neither_overflow_nor_cost_infinity():
    model = LogisticRegressionNLL(1)
    model.weights[:] = 1.0
    with np.errstate(all="raise", under="ignore"):
        z = np.array([[-1000], [0], [1000], [-np.inf], [np.inf]])
        np.testing.assert_array_equal(model.predict_proba(z), [0, 0.5, 1, 0, 1])
        assert model.predict_proba(np.array([[-700.0]])) == pytest.approx(np.exp(-700.0), rel=1e-12)  # not yet 0
        assert model.nll(np.array([[1000.0], [-1000.0]]), [0, 1]) == 1000
        assert model.nll(np.array([[1000.0], [-1000.0]]), [1, 0]) == 0
    z = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(model.predict_proba(z[:, None]), 1 / (1 + np.exp(-z)), rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gradient_is_that_of_finite_differences(kind, cancer, l2):
    X, y = cancer[0][:, :5], cancer[1]
    model = kind(5)
    at = np.random.default_rng(0).normal(size=6)

    def objective(parameters):
        model.weights, model.bias = parameters[:5], parameters[5]
        return model.nll(X, y) + l2 / 2 * parameters[:5] @ parameters[:5]

    numeric = approx_fprime(at, objective, 1e-7)
    objective(at)
    weights, bias = model.gradient(X, y, l2)
    np.testing.assert_allclose([*weights, bias], numeric, atol=1e-6)


def test_numpy_and_torch_take_the_same_steps(cancer):
    """tests/lessons/test_classifiers.py compares the optimum that they reach with scipy's."""
    X, y = cancer
    by_formula, by_autograd = (kind(30).fit(X, y, epochs=50, l2=0.01) for kind in KINDS)
    np.testing.assert_allclose(by_formula.weights, by_autograd.weights, rtol=1e-12)
    assert by_formula.bias == pytest.approx(by_autograd.bias, rel=1e-12)
    assert by_formula.nll(X, y) == pytest.approx(log_loss(y, by_formula.predict_proba(X)), rel=1e-10)


def test_the_threshold_itself_is_class_one():
    model, X = LogisticRegressionNLL(1), np.array([[1.0], [-1.0]])
    np.testing.assert_array_equal(model.predict(X), [1, 1])  # untrained: exactly one half
    np.testing.assert_array_equal(model.predict(X, threshold=0.500001), [0, 0])


def test_labels_may_be_a_column_and_fits_go_on(cancer):
    X, y = cancer
    whole = LogisticRegressionNLL(30).fit(X, y, epochs=20)
    parts = LogisticRegressionNLL(30).fit(X, y[:, None], epochs=5).fit(X, y, epochs=15)
    np.testing.assert_array_equal(whole.weights, parts.weights)


@pytest.mark.filterwarnings("ignore")  # scikit-learn does not converge: that is the point
def test_the_full_set_is_separable_and_has_no_optimum(cancer):
    """A hardly penalised fit makes no mistake; gradient descent grows for as long as it goes on."""
    X, y = cancer
    assert LogisticRegression(C=1e10, max_iter=20_000, tol=1e-12).fit(X, y).score(X, y) == 1.0
    model, norms, nll = LogisticRegressionNLL(30), [], []
    for epochs in (1000, 3000, 12_000):
        model.fit(X, y, lr=0.5, epochs=epochs)
        norms.append(np.linalg.norm(model.weights))
        nll.append(model.nll(X, y))
    assert norms[1] > 1.3 * norms[0]
    assert norms[2] > 1.3 * norms[1]
    assert nll[0] > nll[1] > nll[2]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_optimum_of_label_smoothing(smoothing):
    """Of a model that knows nothing but the shares of the classes: (1-ε) p + ε/2, here p = 3/4."""
    X, y = np.zeros((8, 1)), np.array([1, 1, 1, 0] * 2)
    model = LogisticRegressionTorch(1, LossOptions(label_smoothing=smoothing)).fit(X, y, lr=2.0, epochs=300)
    np.testing.assert_allclose(model.predict_proba(X), (1 - smoothing) * 0.75 + smoothing / 2, atol=1e-12)
