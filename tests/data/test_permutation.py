import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nanolm.data.permutation import Permutation, ranks, uniforms


@given(st.integers(1, 5000), st.text(max_size=10))
def test_is_a_bijection_of_any_size(size, key):
    assert sorted(Permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


@given(st.integers(1, (1 << 62) - 1), st.data())
def test_stays_inside_any_size_and_keeps_values_apart(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    values = Permutation(size, "key")(np.array(positions, dtype=np.int64))
    assert len(set(values.tolist())) == len(positions)
    assert all(0 <= value < size for value in values.tolist())


def test_does_not_depend_on_how_positions_are_asked_for():
    permutation = Permutation(1001, "key")
    together = permutation(np.arange(1001)).tolist()
    assert together == [int(permutation(np.array([i]))[0]) for i in range(1001)]
    assert together == list(ranks(1001, "key"))


@pytest.mark.parametrize("size", [5, 97, 1024])
def test_every_position_goes_everywhere_equally_often(size):
    """A chi-squared test of where three positions go under 20 * size keys; fails for a shift or a poor network."""
    num_keys = 20 * size if size < 500 else 4000
    images = np.stack([Permutation(size, f"{key}")(np.array([0, size // 2, size - 1])) for key in range(num_keys)])
    bins = min(size, 16)
    for column in images.T:
        observed = np.bincount(column * bins // size, minlength=bins)
        sizes = np.bincount(np.arange(size) * bins // size, minlength=bins)
        assert stats.chisquare(observed, num_keys * sizes / size).pvalue > 1e-4


def test_neighbours_are_torn_apart():
    values = Permutation(10_000, "key")(np.arange(10_000))
    assert abs(np.corrcoef(np.arange(10_000), values)[0, 1]) < 0.05
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05


def oracle(size, key, value):
    """The same network with Python's integers, one value at a time."""
    digest = hashlib.shake_256(key.encode()).digest(64)
    keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 64, 8)]
    a = math.isqrt(size - 1) + 1
    b = math.ceil(size / a)

    def mix(x, round_key):
        z = (x * 0x9E3779B97F4A7C15 + round_key) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    while True:
        left, right = divmod(value, b)
        for k in range(0, 8, 2):
            left = (left + mix(right, keys[k])) % a
            right = (right + mix(left, keys[k + 1])) % b
        value = left * b + right
        if value < size:
            return value


@given(st.integers(1, 10**9), st.text(max_size=5), st.data())
def test_is_the_same_wherever_it_is_computed(size, key, data):
    value = data.draw(st.integers(0, size - 1))
    assert Permutation(size, key)(np.array([value])) == [oracle(size, key, value)]


def test_uniforms_are_uniform():
    draws = np.fromiter(itertools.islice(uniforms("key"), 100_000), float)
    assert stats.kstest(draws, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02
