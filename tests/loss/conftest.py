"""Fixtures of the tests of nanolm.loss."""

from collections.abc import Callable

import pytest

from tests.loss.problems import take_at_once


@pytest.fixture
def set_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """set_chunk(rows) makes linear_nll take so many tokens at a time."""
    return lambda num_rows: take_at_once(monkeypatch, num_rows)
