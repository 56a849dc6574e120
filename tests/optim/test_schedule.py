"""The schedules' shapes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.schema import ScheduleConfig
from nanolm.optim import learning_rate_factor

NAMES = ["wsd", "cosine", "constant"]


@pytest.mark.parametrize("name", NAMES)
@given(
    warmup=st.floats(0, 0.99),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
    num_steps=st.integers(1, 500),
)
def test_every_schedule(name, warmup, decay, final, num_steps):
    config = ScheduleConfig(name, warmup, decay, final)
    factors = [learning_rate_factor(config, (step + 0.5) / num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("name", ["wsd", "cosine"])
@given(final=st.floats(0, 1), warmup=st.floats(0, 0.5))
def test_the_end_is_the_final_fraction(name, final, warmup):
    config = ScheduleConfig(name, warmup, 0.4, final)
    assert learning_rate_factor(config, 1.0) == pytest.approx(final)
    assert learning_rate_factor(config, 1.0 - 1e-9) == pytest.approx(final, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("wsd", 0.05, 0.5),
        ("wsd", 0.1, 1.0),
        ("wsd", 0.6, 1.0),
        ("wsd", 0.8, 0.2 + 0.8 * 0.5),
        ("wsd", 1.0, 0.2),
        ("cosine", 0.05, 0.5),
        ("cosine", 0.55, 0.2 + 0.8 * 0.5),
        ("cosine", 0.325, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2),
        ("cosine", 1.0, 0.2),
        ("constant", 0.05, 0.5),
        ("constant", 1.0, 1.0),
    ],
)
def test_values(name, progress, expected):
    config = ScheduleConfig(name, warmup_fraction=0.1, decay_fraction=0.4, final_fraction=0.2)
    assert learning_rate_factor(config, progress) == pytest.approx(expected)


def test_overlapping_warmup_and_decay_make_a_tent():
    config = ScheduleConfig("wsd", warmup_fraction=0.5, decay_fraction=1.0, final_fraction=0.0)
    assert learning_rate_factor(config, 0.25) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0.75) == pytest.approx(0.25)


def test_progress_beyond_the_run_stays_at_the_end():
    """A run limited in seconds may take its last step a moment late."""
    config = ScheduleConfig("wsd", 0.1, 0.4, 0.1)
    assert learning_rate_factor(config, 1.3) == learning_rate_factor(config, 1.0)
