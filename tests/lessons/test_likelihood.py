import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from nanolm.lessons import likelihood


def test_the_joint_probability_before_and_after_independence(column, assert_all_hold):
    step = likelihood.joint_probability()
    assert_all_hold(step)
    # 3 red of 7 and 2 blue of 3, in one of the 10 orders of the colours.
    without = scipy.stats.hypergeom(10, 7, 5).pmf(3) / math.comb(5, 3)
    with_return = scipy.stats.binom(5, 0.7).pmf(3) / math.comb(5, 3)
    assert float(column(step, "so far")[-1]) == pytest.approx(without, abs=1e-5)
    assert float(column(step, "so far, if iid")[-1]) == pytest.approx(with_return, abs=1e-5)
    assert f"{without:.4f}" in step.about
    assert len(set(column(step, "p if iid"))) == 2


def test_the_product_underflows_where_the_floats_end(column, assert_all_hold):
    step = likelihood.product_to_sum()
    assert_all_hold(step)
    # The smallest float32 is 2^-149, the smallest float64 2^-1074.
    assert column(step, "flips") == ["10", "100", "149", "150", "1,074", "1,075", "1,100"]
    assert [cell == "0" for cell in column(step, "product, float32")] == [False] * 3 + [True] * 4
    assert [cell == "0" for cell in column(step, "product, float64")] == [False] * 5 + [True] * 2
    assert column(step, "sum of ln p")[-1] == f"{scipy.stats.binom(1, 0.5).logpmf(1) * 1100:.4f}"


def test_one_formula_is_a_distribution_of_data_and_none_of_parameters(column, assert_all_hold):
    step = likelihood.two_readings()
    assert_all_hold(step)
    area = scipy.integrate.quad(lambda t: t**7 * (1 - t) ** 3, 0, 1)[0]
    assert float(column(step, "sum")[2]) == pytest.approx(area, abs=1e-9)
    for curve, heads in zip(step.plot.curves, (6, 7, 8), strict=True):
        ways = math.comb(10, heads)
        np.testing.assert_allclose(curve.y, scipy.stats.binom(10, curve.x).pmf(heads) / ways, rtol=1e-12)


def test_every_way_finds_the_same_coin(column, assert_all_hold):
    step = likelihood.coin()
    assert_all_hold(step)
    best = scipy.optimize.minimize_scalar(
        lambda theta: -scipy.stats.binom(10, theta).logpmf(7), bounds=(0.01, 0.99), options={"xatol": 1e-10}
    )
    assert [float(cell) for cell in column(step, "θ")] == pytest.approx([best.x] * 3, abs=1e-6)


def test_gradient_descent_goes_downhill_only():
    nll = likelihood.coin().plot.curves[1].y
    assert all(after < before for before, after in itertools.pairwise(nll))


def test_both_share_their_maximum_until_one_has_none(column, assert_all_hold):
    step = likelihood.shared_maximum()
    assert_all_hold(step)
    assert column(step, "θ of the largest L") == ["0.70", "0.70", "0.70", "none: 0 at every θ"]
    assert column(step, "θ of the largest ln L") == ["0.70"] * 4
    expected = [n * -scipy.stats.bernoulli(0.7).entropy() for n in (10, 100, 1000, 10_000)]
    assert [float(cell) for cell in column(step, "largest ln L")] == pytest.approx(expected, abs=0.006)
