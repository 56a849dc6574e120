import numpy as np
import pytest
import scipy.stats

from nanolm.lessons import information


def test_the_surprisal_table(column, assert_all_hold):
    step = information.surprisal_table()
    assert_all_hold(step)
    assert column(step, "probability") == ["0.9", "0.5", "0.01"]
    assert column(step, "surprisal (nats)") == ["0.105", "0.693", "4.605"]
    assert [float(cell) for cell in column(step, "surprisal (bits)")] == pytest.approx(
        -np.log2([0.9, 0.5, 0.01]), abs=1e-3
    )


def test_entropy_and_divergence_as_scipy_has_them(column, assert_all_hold):
    step = information.entropy_and_divergence()
    assert_all_hold(step)
    p, q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
    h, kl = scipy.stats.entropy(p), scipy.stats.entropy(p, q)
    assert [float(cell) for cell in column(step, "H(p)")] == pytest.approx([h, h, 0], abs=1e-4)
    assert [float(cell) for cell in column(step, "KL(p ‖ q)")] == pytest.approx([kl, 0, np.log(2)], abs=1e-4)
    assert [float(cell) for cell in column(step, "H(p, q)")] == pytest.approx([h + kl, h, np.log(2)], abs=1e-4)


def test_no_model_pays_less_than_the_entropy():
    plot = information.entropy_and_divergence().plot
    cross, divergence = plot.curves
    ((_, entropy),) = plot.levels
    assert min(cross.y) == pytest.approx(entropy)
    assert cross.x[int(np.argmin(cross.y))] == pytest.approx(0.7)
    assert min(divergence.y) == pytest.approx(0, abs=1e-12)
