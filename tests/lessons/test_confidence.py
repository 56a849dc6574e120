import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from nanolm.lessons import confidence
from nanolm.lessons.calibration import draw_halves


def test_the_price_of_confidence(cells, curve):
    step = confidence.overconfidence()
    assert cells(step, "loss if right") == [0.511, 0.223, 0.051, 0.001]  # the source's numbers
    assert cells(step, "loss if wrong") == [0.916, 1.609, 2.996, 6.908]
    for accuracy in (0.6, 0.8, 0.95):
        best = scipy.optimize.minimize_scalar(
            lambda c, a=accuracy: scipy.special.rel_entr(a, c) + scipy.special.rel_entr(1 - a, 1 - c),
            bounds=(0.5, 0.999),
        )
        along, loss = curve(step, f"right with probability {accuracy:g}")
        assert along[int(np.argmin(loss))] == pytest.approx(best.x, abs=0.0026)


def test_the_gap_grows_without_end_unless_smoothed(cells, curve):
    step = confidence.logits_without_end()
    one_hot, smoothed = cells(step, "gap, one-hot"), cells(step, "gap, smoothed by 0.1")
    # The first step by hand: p = 1/4, so the right logit gains 3/4 and each other loses 1/4.
    assert one_hot[0] == 1.0
    # ln of the steps: each factor of ten adds about ln 10.
    assert one_hot[3] - one_hot[2] == pytest.approx(math.log(10), rel=0.02)
    assert smoothed[3] == pytest.approx(math.log(0.925 / 0.025), abs=1e-4)
    flow = scipy.integrate.solve_ivp(lambda _, g: 4 / (3 + math.exp(g[0])), (0, 1000), [0], rtol=1e-9, atol=1e-9)
    assert curve(step, "one-hot target")[1][-1] == pytest.approx(flow.y[0, -1], abs=0.01)


def test_the_optimum_of_a_smoothed_target(cells, curve):
    step = confidence.smoothing_optimum()
    target = np.array([0.025, 0.925, 0.025, 0.025])
    probabilities, *values, _ = cells(step, "value", str)
    assert probabilities == str(target.tolist())
    found = scipy.optimize.minimize(lambda z: scipy.special.logsumexp(z) - target @ z, np.zeros(4), tol=1e-12)
    assert scipy.special.softmax(found.x) == pytest.approx(target, abs=1e-5)
    assert found.fun == pytest.approx(scipy.stats.entropy(target), abs=1e-6)
    assert [float(value) for value in values] == pytest.approx([found.fun, -np.log(0.925)], abs=1e-6)
    for epsilon in (0, 0.1, 0.3):
        along, objective = curve(step, f"ε = {epsilon:g}")
        assert along[int(np.argmin(objective))] == pytest.approx(min(1 - epsilon * 3 / 4, 0.999), abs=0.004)


def test_smoothing_makes_underconfident_and_is_inverted(cells):
    step = confidence.smoothing_and_calibration(0)
    nll = cells(step, "NLL")
    assert nll[3] == nll[0] < nll[2] < nll[1]
    assert len(set(cells(step, "accuracy"))) == 1
    assert cells(step, "confidence")[1] < cells(step, "accuracy")[1]
    p, labels = draw_halves(0)[1]
    of_label = p[np.arange(len(p)), labels].numpy()
    assert nll[0] == pytest.approx(-np.log(of_label).mean(), abs=1e-4)
    assert nll[1] == pytest.approx(-np.log(0.9 * of_label + 0.01).mean(), abs=1e-4)
