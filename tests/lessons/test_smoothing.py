import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from nanolm.lessons import smoothing
from nanolm.lessons.calibration import draw_halves


def test_the_optimum_of_a_smoothed_target(column, assert_all_hold):
    step = smoothing.smoothing_optimum()
    assert_all_hold(step)
    target = np.array([0.025, 0.925, 0.025, 0.025])
    assert column(step, "value")[0] == str(target.tolist())
    found = scipy.optimize.minimize(lambda z: scipy.special.logsumexp(z) - target @ z, np.zeros(4), tol=1e-12)
    assert scipy.special.softmax(found.x) == pytest.approx(target, abs=1e-5)
    assert float(column(step, "value")[1]) == pytest.approx(scipy.stats.entropy(target), abs=1e-6)
    assert float(column(step, "value")[1]) == pytest.approx(found.fun, abs=1e-6)
    assert float(column(step, "value")[2]) == pytest.approx(-np.log(0.925), abs=1e-6)


def test_each_curve_is_lowest_at_its_target():
    for curve, epsilon in zip(smoothing.smoothing_optimum().plot.curves, (0, 0.1, 0.3), strict=True):
        best = min(1 - epsilon * 3 / 4, 0.999)
        assert curve.x[int(np.argmin(curve.y))] == pytest.approx(best, abs=0.004)


def test_smoothing_makes_underconfident_and_is_inverted(column, assert_all_hold):
    step = smoothing.smoothing_and_calibration(0)
    assert_all_hold(step)
    nll = [float(cell) for cell in column(step, "NLL")]
    assert nll[3] == nll[0] < nll[2] < nll[1]
    assert len(set(column(step, "accuracy"))) == 1
    confidence, accuracy = (float(column(step, name)[1]) for name in ("confidence", "accuracy"))
    assert confidence < accuracy
    p, labels = draw_halves(0)[1]
    of_label = p[np.arange(len(p)), labels].numpy()
    assert nll[0] == pytest.approx(-np.log(of_label).mean(), abs=1e-4)
    assert nll[1] == pytest.approx(-np.log(0.9 * of_label + 0.01).mean(), abs=1e-4)
