import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch

from nanolm.lessons import stability
from nanolm.loss import reference as exact


def test_from_probabilities_a_mistake_is_infinite_or_clipped(column, assert_all_hold):
    step = stability.stable_binary()
    assert_all_hold(step)
    logits = [2.0, 10.0, 20.0, 40.0, 1000.0]
    exact = -scipy.special.log_expit(-np.array(logits))
    assert [float(cell) for cell in column(step, "exact")] == pytest.approx(exact, rel=1e-3)
    assert [float(cell) for cell in column(step, "bernoulli_nll, float32")] == pytest.approx(exact, rel=1e-3)
    assert column(step, "naive, float32")[2:] == ["inf"] * 3
    clipped = column(step, "clipped, float64")
    assert clipped[3:] == [f"{-math.log(1e-12):.2f}"] * 2


def test_what_the_words_say_of_float32():
    # 1 + exp(-z) is rounded to 1 below half of the distance of 1 to the next float32, 2^-23.
    assert torch.sigmoid(torch.tensor(16.5)) < 1
    assert torch.sigmoid(torch.tensor(16.8)) == 1
    assert "above z = 16.6" in stability.stable_binary().about
    assert np.float32(1 - 1e-12) == 1
    assert 88 < np.log(np.finfo(np.float32).max) < 89


def test_a_shift_alone_is_not_enough(column, assert_all_hold):
    step = stability.stable_softmax()
    assert_all_hold(step)
    assert column(step, "plain, float32") == ["1.408", "inf", "inf"]
    assert column(step, "shifted, float32")[::2] == ["1.408", "inf"]
    assert column(step, "shifted, float64") == ["1.408", "100.0", "inf"]
    assert column(step, "softmax_nll, float32") == column(step, "exact") == ["1.408", "100.0", "1000"]
    logits = np.array([1e3, 0.0, -1e3])
    assert -scipy.special.log_softmax(logits)[1] == pytest.approx(1000)
    with np.errstate(divide="ignore"):
        assert np.log(scipy.special.softmax(logits))[1] == -np.inf
        assert np.log(exact.softmax([0.0, -746.0]))[1] == -np.inf
    assert np.isfinite(np.log(exact.softmax([0.0, -745.0]))[1])
    assert exact.multiclass_nll([1], [[0.0, -746.0]]) == 746


def test_each_curve_ends_where_its_exponential_does():
    shifted, plain, ours = stability.stable_softmax().plot.curves
    assert math.log(np.finfo(np.float32).max) == pytest.approx(plain.x[-1], abs=0.5)
    assert -math.log(2.0**-149) == pytest.approx(shifted.x[-1], abs=1)
    assert ours.y == pytest.approx([math.log1p(math.exp(x)) for x in ours.x], rel=1e-6)


def test_a_loss_that_forgets_log_sum_exp_is_found(monkeypatch):
    def forgetful(logits, targets, **_):
        nll = -torch.log_softmax(logits, dim=1).exp().log().gather(1, targets[:, None])[:, 0]
        return SimpleNamespace(nll=nll)

    monkeypatch.setattr(stability, "softmax_nll", forgetful)
    holds = [identity.holds for identity in stability.stable_softmax().identities]
    assert holds[0]
    assert not holds[2]
