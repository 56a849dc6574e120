"""Fixtures of the tests of nanolm.loss."""

import pytest

from nanolm.loss import fused


@pytest.fixture
def set_chunk(monkeypatch):
    """set_chunk(rows) makes linear_nll take so many tokens at a time."""

    def set_rows(rows: int) -> None:
        monkeypatch.setattr(fused, "rows_per_chunk", lambda num_tokens, bytes_per_row, device: rows)

    return set_rows
