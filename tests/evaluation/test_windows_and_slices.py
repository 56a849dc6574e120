from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanolm.evaluation import windows
from nanolm.evaluation.slices import frequency_groups, position_group, position_names


@given(num_tokens=st.integers(1, 300), sequence_length=st.integers(1, 40), data=st.data())
def test_windows_score_every_target_once_with_the_promised_context(num_tokens, sequence_length, data):
    stride = data.draw(st.integers(1, sequence_length))
    scored = []
    for window in windows(num_tokens, sequence_length, stride):
        assert window.start <= window.first_scored < window.end <= num_tokens
        assert window.end - window.start == min(sequence_length, num_tokens)
        scored += range(window.first_scored, window.end)
        assert window.start == 0 or window.first_scored - window.start >= sequence_length - stride
    assert scored == list(range(num_tokens))


def test_deciles_of_frequency_each_hold_about_a_tenth_of_the_text():
    generator = np.random.default_rng(0)
    tokens = np.append(0, generator.integers(1, 1001, 100_000))
    train = SimpleNamespace(num_tokens=100_000, read=lambda start, length: tokens[start : start + length])
    of_id = frequency_groups(train, 1001, end_of_text_id=0)
    shares = np.bincount(of_id[tokens[1:]], minlength=11) / 100_000
    np.testing.assert_allclose(shares[:10], 0.1, atol=0.002)
    assert shares[10] == 0
    counts = np.bincount(tokens[1:], minlength=1001)
    means = [counts[1:][of_id[1:] == decile].mean() for decile in range(10)]
    assert means == sorted(means, reverse=True)


def test_positions_are_grouped_by_powers_of_two():
    names = position_names(10)
    assert names == ["0", "1", "2–3", "4–7", "8–9"]
    assert [names[group] for group in position_group(np.arange(10))] == [
        "0", "1", "2–3", "2–3", "4–7", "4–7", "4–7", "4–7", "8–9", "8–9"
    ]  # fmt: skip
    assert position_names(1) == ["0"]
