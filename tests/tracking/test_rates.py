"""Rates follow the present, not the average since the start; times add up over all starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.tracking.rates import Stopwatch, Throughput, seconds_left

STEPS = st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 30)), min_size=1, max_size=60)


@given(steps=STEPS, window=st.integers(1, 40))
def test_the_rate_is_that_of_the_fewest_newest_steps_that_fill_the_window(
    steps: list[tuple[int, int]], window: int
) -> None:
    throughput = Throughput(window)
    for tokens, seconds in steps:
        rate = throughput.add(tokens, seconds)
    sums = [(sum(t for t, _ in steps[i:]), sum(s for _, s in steps[i:])) for i in range(len(steps))]
    filled = [(tokens, seconds) for tokens, seconds in sums if seconds >= window]
    tokens, seconds = filled[-1] if filled else sums[0]
    assert rate == pytest.approx(tokens / seconds, rel=1e-6)


def test_a_slow_first_step_is_forgotten() -> None:
    throughput = Throughput(window_seconds=5.0)
    assert throughput.add(1000, 100.0) == 10.0
    for _ in range(6):
        rate = throughput.add(1000, 1.0)
    assert rate == pytest.approx(1000.0)


def test_seconds_go_on_from_those_of_earlier_starts() -> None:
    now = 50.0
    stopwatch = Stopwatch(before=12.5, clock=lambda: now)
    assert stopwatch.seconds == 12.5
    now = 53.0
    assert stopwatch.seconds == 15.5


@pytest.mark.parametrize(
    ("max_steps", "max_seconds", "left"),
    [(100, None, 40.0), (None, 45.0, 15.0), (100, 45.0, 15.0), (70, 45.0, 10.0), (None, 20.0, 0.0), (None, None, None)],
)
def test_the_nearer_limit_tells_the_time_left(
    max_steps: int | None, max_seconds: float | None, left: float | None
) -> None:
    assert seconds_left(60, 1.0, 30.0, max_steps, max_seconds) == left


def test_no_rate_no_estimate() -> None:
    assert seconds_left(1, 0.0, 0.0, 100, None) is None
