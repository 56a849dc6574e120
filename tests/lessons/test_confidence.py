import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special

from nanolm.lessons import confidence


def test_the_overconfidence_tables(column, assert_all_hold):
    step = confidence.overconfidence()
    assert_all_hold(step)
    assert column(step, "loss if right") == ["0.511", "0.223", "0.051", "0.001"]
    assert column(step, "loss if wrong") == ["0.916", "1.609", "2.996", "6.908"]


@pytest.fixture(scope="module")
def growth():
    return confidence.logits_without_end()


@pytest.mark.parametrize(("place", "accuracy"), list(enumerate((0.6, 0.8, 0.95))))
def test_the_best_confidence_is_the_accuracy(place, accuracy):
    curve = confidence.overconfidence().plot.curves[place]
    best = scipy.optimize.minimize_scalar(
        lambda c: scipy.special.rel_entr(accuracy, c) + scipy.special.rel_entr(1 - accuracy, 1 - c),
        bounds=(0.5, 0.999),
    )
    assert best.x == pytest.approx(accuracy, abs=1e-4)
    assert curve.x[int(np.argmin(curve.y))] == pytest.approx(best.x, abs=0.0026)


def test_the_gap_grows_without_end_unless_smoothed(growth, column, assert_all_hold):
    assert_all_hold(growth)
    one_hot = [float(cell) for cell in column(growth, "gap, one-hot")]
    smoothed = [float(cell) for cell in column(growth, "gap, smoothed by 0.1")]
    # The first step by hand: p = 1/4, so the right logit gains 3/4 and each other loses 1/4.
    assert one_hot[0] == 1.0
    # ln of the steps: each factor of ten adds about ln 10.
    assert one_hot[3] - one_hot[2] == pytest.approx(math.log(10), rel=0.02)
    assert smoothed[3] == pytest.approx(math.log(0.925 / 0.025), abs=1e-4)


def test_the_gap_follows_its_differential_equation(growth):
    time, start = 1000.0, 0.0
    flow = scipy.integrate.solve_ivp(lambda _, g: 4 / (3 + math.exp(g[0])), (0, time), [start], rtol=1e-9, atol=1e-9).y[
        0, -1
    ]
    assert 3 * flow + math.exp(flow) == pytest.approx(1 + 4 * time, rel=1e-5)
    assert growth.plot.curves[0].y[-1] == pytest.approx(flow, abs=0.01)
