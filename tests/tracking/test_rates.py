import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.tracking import Throughput

STEPS = st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 30)), min_size=1, max_size=60)


@given(steps=STEPS, window=st.integers(1, 40))
def test_the_rate_is_that_of_the_fewest_newest_steps_that_fill_the_window(steps, window) -> None:
    throughput = Throughput(window)
    for tokens, seconds in steps:
        rate = throughput.add(tokens, seconds)
    sums = [(sum(t for t, _ in steps[i:]), sum(s for _, s in steps[i:])) for i in range(len(steps))]
    filled = [(tokens, seconds) for tokens, seconds in sums if seconds >= window]
    tokens, seconds = filled[-1] if filled else sums[0]
    assert rate == pytest.approx(tokens / seconds, rel=1e-6)
