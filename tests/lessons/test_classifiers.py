import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.linear_model import LogisticRegression

from nanolm.classifiers import LogisticRegressionNLL
from nanolm.lessons import classifiers

X = np.array([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
Y = np.array([0, 0, 1, 0, 1, 0, 1, 1])


def test_binary_cross_entropy_four_ways(column, assert_all_hold):
    step = classifiers.binary_cross_entropy()
    assert_all_hold(step)
    labels, p = np.array([1, 0, 1, 1, 0]), scipy.special.expit([2.0, -1.0, 0.5, -0.3, 1.2])
    expected = -np.mean(scipy.stats.bernoulli(p).logpmf(labels))
    assert [float(cell) for cell in column(step, "NLL per example")] == pytest.approx([expected] * 4, abs=1e-11)


def test_the_fit_by_hand_is_scikit_learns(column, assert_all_hold):
    step = classifiers.logistic_regression()
    assert_all_hold(step)
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(X[:, None], Y)
    weights = classifiers.fit_logistic(np.stack([X, np.ones_like(X)], axis=1), Y)
    assert weights == pytest.approx([theirs.coef_[0, 0], theirs.intercept_[0]], abs=1e-6)
    expected = theirs.predict_proba(X[:, None])[:, 1]
    assert [float(cell) for cell in column(step, "ŷ")] == pytest.approx(expected, abs=1e-4)
    assert [float(cell) for cell in column(step, "ŷ - y")] == pytest.approx(expected - Y, abs=1e-4)


def test_the_fit_by_hand_takes_the_baselines_steps():
    ours = classifiers.fit_logistic(np.stack([X, np.ones_like(X)], axis=1), Y, rate=0.1, num_steps=7)
    theirs = LogisticRegressionNLL(1).fit(X[:, None], Y, lr=0.1, epochs=7)
    assert ours == pytest.approx([*theirs.weights, theirs.bias], rel=1e-12)


def test_only_differences_of_logits_matter(column, assert_all_hold):
    step = classifiers.softmax_scores()
    assert_all_hold(step)
    logits = ([2, 1, 0], [2, 2, 0], [3, 1, 0], [102, 101, 100])
    expected = [-scipy.special.log_softmax(np.array(z, dtype=float))[1] for z in logits]
    nll = [float(cell) for cell in column(step, "NLL of the second")]
    assert nll == pytest.approx(expected, abs=1e-6)
    base, own_raised, rival_raised, all_raised = nll
    assert own_raised < base == all_raised < rival_raised
    own, rival = step.plot.curves
    assert np.all(np.diff(own.y) < 0)
    assert np.all(np.diff(rival.y) > 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_softmax_gradient_three_ways(seed, column, assert_all_hold):
    step = classifiers.softmax_gradient(seed)
    assert_all_hold(step)
    logits = np.array([float(cell) for cell in column(step, "logit")])
    expected = scipy.special.softmax(logits) - np.eye(5)[2]
    for way in ("p - y", "numerically", "softmax_nll"):
        assert [float(cell) for cell in column(step, way)] == pytest.approx(expected, abs=1e-4)


def test_a_seed_changes_the_logits(column):
    assert column(classifiers.softmax_gradient(0), "logit") != column(classifiers.softmax_gradient(1), "logit")
