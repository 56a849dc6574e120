import math

import numpy as np
import pytest
import scipy.special
import torch

from nanolm.lessons import stability
from nanolm.loss import reference as exact


def test_from_probabilities_a_mistake_is_infinite_or_clipped(cells):
    step = stability.stable_binary()
    expected = -scipy.special.log_expit(-np.array([2.0, 10.0, 20.0, 40.0, 1000.0]))
    assert cells(step, "exact") == pytest.approx(expected, rel=1e-3)
    assert cells(step, "bernoulli_nll, float32") == pytest.approx(expected, rel=1e-3)
    assert cells(step, "naive, float32")[2:] == [math.inf] * 3
    assert cells(step, "clipped, float64")[3:] == pytest.approx([-math.log(1e-12)] * 2, abs=0.005)


def test_what_the_words_say_of_float32():
    # 1 + exp(-z) is rounded to 1 below half of the distance of 1 to the next float32, 2^-23.
    assert torch.sigmoid(torch.tensor(16.5)) < 1
    assert torch.sigmoid(torch.tensor(16.8)) == 1
    assert "16.6" in stability.stable_binary().about
    assert np.float32(1 - 1e-12) == 1
    assert 88 < np.log(np.finfo(np.float32).max) < 89


def test_a_shift_alone_is_not_enough(cells):
    step = stability.stable_softmax()
    assert cells(step, "plain, float32", str) == ["1.408", "inf", "inf"]
    assert cells(step, "shifted, float32", str)[::2] == ["1.408", "inf"]
    assert cells(step, "shifted, float64", str) == ["1.408", "100.0", "inf"]
    assert cells(step, "softmax_nll, float32") == cells(step, "exact") == [1.408, 100, 1000]
    assert -scipy.special.log_softmax([1e3, 0.0, -1e3])[1] == pytest.approx(1000)
    with np.errstate(divide="ignore"):
        assert np.log(scipy.special.softmax([1e3, 0.0, -1e3]))[1] == -np.inf
        assert np.log(exact.softmax([0.0, -746.0]))[1] == -np.inf
    assert exact.multiclass_nll([1], [[0.0, -746.0]]) == 746


def test_each_curve_ends_where_its_exponential_does(curve):
    step = stability.stable_softmax()
    assert curve(step, "plain, until exp overflows")[0][-1] == pytest.approx(np.log(np.finfo(np.float32).max), abs=0.5)
    assert curve(step, "shifted, then ln, until exp underflows")[0][-1] == pytest.approx(149 * math.log(2), abs=1)
    behind, ours = curve(step, "softmax_nll")
    np.testing.assert_allclose(ours.numpy(), np.logaddexp(0, behind.numpy()), rtol=1e-6)
