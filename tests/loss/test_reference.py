"""The numbers of "Log-likelihood from first principles", and the identities that the textbook states."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn.metrics import log_loss

from nanolm.loss import bernoulli_nll, reference, softmax_nll

GENERATOR = np.random.default_rng(0)


def distribution(size):
    weights = GENERATOR.random(size)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("probabilities", "numbers"),
    [
        ([0.9, 0.5, 0.01], [0.105, 0.693, 4.605]),
        ([0.60, 0.80, 0.95, 0.999], [0.511, 0.223, 0.051, 0.001]),
        ([0.40, 0.20, 0.05, 0.001], [0.916, 1.609, 2.996, 6.908]),
    ],
)
def test_surprisals_of_the_source(probabilities, numbers):
    np.testing.assert_allclose(reference.surprisal(probabilities), numbers, atol=5e-4)


def test_the_smoothed_target_of_the_source():
    np.testing.assert_allclose(reference.smooth_labels(4, 1, 0.1), [0.025, 0.925, 0.025, 0.025])


def test_a_product_underflows_where_the_sum_of_logarithms_does_not():
    assert reference.joint_probability([0.5] * 1100) == 0
    assert reference.log_likelihood([0.5] * 1100) == pytest.approx(1100 * math.log(0.5))


def test_cross_entropy_is_entropy_and_divergence():
    p, q = distribution(7), distribution(7)
    assert reference.cross_entropy(p, q) == pytest.approx(reference.entropy(p) + reference.kl_divergence(p, q))
    assert reference.kl_divergence(p, q) > 0 == reference.kl_divergence(p, p)


def test_binary_forms_agree_with_sklearn_and_the_module():
    logits, targets = GENERATOR.normal(size=100) * 5, GENERATOR.integers(0, 2, 100)
    expected = log_loss(targets, expit(logits))
    assert reference.binary_nll_from_logits(targets, logits) == pytest.approx(expected)
    assert reference.binary_nll_from_probs(targets, expit(logits)) == pytest.approx(expected)
    result = bernoulli_nll(torch.from_numpy(logits), torch.from_numpy(targets), reduction="mean")
    assert result.objective.item() == pytest.approx(expected)


def test_softmax_forms_agree_with_scipy_and_the_module():
    logits, targets = GENERATOR.normal(size=(50, 6)) * 5, GENERATOR.integers(0, 6, 50)
    log_probabilities = log_softmax(logits, axis=1)
    expected = -log_probabilities[np.arange(50), targets].mean()
    np.testing.assert_allclose(reference.softmax(logits), np.exp(log_probabilities))
    assert reference.multiclass_nll(targets, logits) == pytest.approx(expected)
    result = softmax_nll(torch.from_numpy(logits), torch.from_numpy(targets), reduction="mean")
    assert result.objective.item() == pytest.approx(expected)


def test_a_sequence_by_the_chain_rule():
    conditional = np.array([0.5, 0.25, 0.125])
    assert reference.sequence_nll(np.log(conditional)) == pytest.approx(6 * math.log(2))
    assert reference.average_token_nll(np.log(conditional)) == pytest.approx(2 * math.log(2))
    assert reference.perplexity(np.log(conditional)) == pytest.approx(4)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_stable_forms_at_extreme_logits(logit):
    assert reference.binary_nll_from_logits([1.0], [logit]) == pytest.approx(max(-logit, 0))
    assert reference.multiclass_nll([0], [[logit, 0.0]]) == pytest.approx(max(-logit, 0))
    with np.errstate(over="ignore", invalid="ignore"):  # and the naive one
        assert not np.isfinite(np.exp(abs(logit)) / (np.exp(abs(logit)) + 1))
