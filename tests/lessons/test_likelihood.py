import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from nanolm.lessons import likelihood


def test_the_joint_probability_before_and_after_independence(cells):
    step = likelihood.joint_probability()
    # 3 red of 7 and 2 blue of 3, in one of the 10 orders of the colours.
    without_return = scipy.stats.hypergeom(10, 7, 5).pmf(3) / math.comb(5, 3)
    with_return = scipy.stats.binom(5, 0.7).pmf(3) / math.comb(5, 3)
    assert cells(step, "so far")[-1] == pytest.approx(without_return, abs=1e-5)
    assert cells(step, "so far, if iid")[-1] == pytest.approx(with_return, abs=1e-5)
    assert f"{without_return:.4f}" in step.about


def test_one_formula_is_a_distribution_of_data_and_none_of_parameters(cells, curve):
    step = likelihood.two_readings()
    area = scipy.integrate.quad(lambda t: t**7 * (1 - t) ** 3, 0, 1)[0]
    assert cells(step, "sum") == pytest.approx([1, 1, area], abs=1e-9)
    for heads in (6, 7, 8):
        theta, found = curve(step, f"{heads} heads seen in 10 flips")
        np.testing.assert_allclose(found, scipy.stats.binom(10, theta).pmf(heads) / math.comb(10, heads), rtol=1e-12)


def test_the_product_underflows_where_the_floats_end(cells):
    step = likelihood.product_to_sum()
    # The smallest float32 is 2^-149, the smallest float64 2^-1074.
    assert cells(step, "flips", str) == ["10", "100", "149", "150", "1,074", "1,075", "1,100"]
    assert [value == 0 for value in cells(step, "product, float32")] == [False] * 3 + [True] * 4
    assert [value == 0 for value in cells(step, "product, float64")] == [False] * 5 + [True] * 2
    assert cells(step, "sum of ln p")[-1] == pytest.approx(scipy.stats.binom(1, 0.5).logpmf(1) * 1100, abs=1e-4)


def test_both_share_their_maximum_until_one_has_none(cells):
    step = likelihood.shared_maximum()
    *peaks, none = cells(step, "θ of the largest L", str)
    assert [float(peak) for peak in peaks] == [0.7] * 3
    assert "none" in none
    assert cells(step, "θ of the largest ln L") == [0.7] * 4
    expected = [n * -scipy.stats.bernoulli(0.7).entropy() for n in (10, 100, 1000, 10_000)]
    assert cells(step, "largest ln L") == pytest.approx(expected, abs=0.006)


def test_every_way_finds_the_same_coin_and_descent_goes_downhill_only(cells, curve):
    step = likelihood.coin()
    best = scipy.optimize.minimize_scalar(
        lambda theta: -scipy.stats.binom(10, theta).logpmf(7), bounds=(0.01, 0.99), options={"xatol": 1e-10}
    )
    assert cells(step, "θ") == pytest.approx([best.x] * 3, abs=1e-6)
    assert all(after < before for before, after in itertools.pairwise(curve(step, "gradient descent")[1]))


def test_surprisal(cells):
    step = likelihood.surprisal()
    assert cells(step, "surprisal (nats)") == [0.105, 0.693, 4.605]  # the source's numbers
    assert cells(step, "surprisal (bits)") == pytest.approx(-np.log2([0.9, 0.5, 0.01]), abs=1e-3)


def test_entropy_and_divergence_as_scipy_has_them(cells, curve):
    step = likelihood.entropy_and_divergence()
    p, q = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]
    h, kl = scipy.stats.entropy(p), scipy.stats.entropy(p, q)
    assert cells(step, "H(p)") == pytest.approx([h, h, 0], abs=1e-4)
    assert cells(step, "KL(p ‖ q)") == pytest.approx([kl, 0, np.log(2)], abs=1e-4)
    assert cells(step, "H(p, q)") == pytest.approx([h + kl, h, np.log(2)], abs=1e-4)
    said, cross = curve(step, "H(p, q)")
    assert min(cross) == pytest.approx(step.levels["H(p)"])  # no model pays less than the entropy
    assert said[int(np.argmin(cross))] == pytest.approx(0.7)
