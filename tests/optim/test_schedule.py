"""The schedules' shapes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.schema import ConstantConfig, CosineConfig, WsdConfig
from nanolm.optim import learning_rate_factor


def schedule(name, warmup=0.1, decay=0.4, final=0.2):
    if name == "constant":
        return ConstantConfig(warmup_fraction=warmup)
    if name == "cosine":
        return CosineConfig(warmup_fraction=warmup, final_fraction=final)
    return WsdConfig(warmup_fraction=warmup, decay_fraction=decay, final_fraction=final)


@pytest.mark.parametrize("name", ["wsd", "cosine", "constant"])
@given(warmup=st.floats(0, 0.99), decay=st.floats(0, 1), final=st.floats(0, 1), num_steps=st.integers(1, 500))
def test_every_schedule_rises_to_one_peak_and_falls(name, warmup, decay, final, num_steps):
    config = schedule(name, warmup, 0.99 * decay * (1 - warmup), final)
    factors = [learning_rate_factor(config, (step + 0.5) / num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("name", ["wsd", "cosine"])
@given(final=st.floats(0, 1), warmup=st.floats(0, 0.5))
def test_the_end_is_the_final_fraction(name, final, warmup):
    config = schedule(name, warmup, 0.4, final)
    assert learning_rate_factor(config, 1.0) == learning_rate_factor(config, 1.3) == pytest.approx(final)
    assert learning_rate_factor(config, 1.0 - 1e-9) == pytest.approx(final, abs=1e-6)


def test_values():
    eighth = (1 + math.cos(math.pi / 4)) / 2
    for name, values in {
        "wsd": {0.05: 0.5, 0.1: 1.0, 0.6: 1.0, 0.8: 0.2 + 0.8 * 0.5, 1.0: 0.2},
        "cosine": {0.05: 0.5, 0.325: 0.2 + 0.8 * eighth, 0.55: 0.2 + 0.8 * 0.5, 1.0: 0.2},
        "constant": {0.05: 0.5, 1.0: 1.0},
    }.items():
        found = {progress: learning_rate_factor(schedule(name), progress) for progress in values}
        assert found == pytest.approx(values), name


def test_warmup_and_decay_that_meet_make_a_tent():
    config = schedule("wsd", warmup=0.5, decay=0.5, final=0.0)
    found = [learning_rate_factor(config, progress) for progress in (0.25, 0.5, 0.75)]
    assert found == pytest.approx([0.5, 1.0, 0.5])
