"""The passes over rows of logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolm.loss import rows


@given(num_columns=st.integers(1, 1000), levels=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_first_max_is_the_first_of_many_ties(num_columns, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(levels, (3, num_columns), generator=generator).float()
    maximum, first = rows.first_max(z)
    for row, largest, position in zip(z.tolist(), maximum[:, 0].tolist(), first[:, 0].tolist(), strict=True):
        assert (largest, position) == (max(row), row.index(max(row)))


@given(st.integers(0, 10**6), st.sampled_from([257, 384, 1000]))
def test_first_max_without_ties_and_with_infinities_and_nan(seed, num_columns):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, num_columns, generator=generator)
    z[0] = -torch.inf
    z[1, torch.randint(num_columns, (5,), generator=generator)] = -torch.inf
    maximum, first = rows.first_max(z)
    assert torch.equal(maximum[:, 0], z.amax(dim=1))
    assert torch.equal(first[:, 0], z.argmax(dim=1))
    z[2, 177] = torch.nan
    assert rows.first_max(z)[0].isnan()[:, 0].tolist() == [False, False, True, False]


def test_softmax_in_place_is_softmax():
    """linear_nll writes the probabilities over the logits, which torch allows without promising it."""
    for num_columns in (1, 65, 1000, 50304):
        z = torch.randn(9, num_columns) * 5
        expected = torch.softmax(z, dim=1)
        assert torch.equal(torch.softmax(z, dim=1, out=z), expected)


def test_moments_block_by_block(monkeypatch):
    z = torch.randn(10, 50, dtype=torch.float64) * 4
    p, maximum = z.softmax(dim=1), z.amax(dim=1, keepdim=True)
    first = z.argmax(dim=1, keepdim=True)
    confidence, *expected = rows.moments(z, maximum, first, p)
    assert torch.equal(confidence, p.amax(dim=1, keepdim=True))
    monkeypatch.setattr(rows, "CACHE_BYTES", 3 * 50 * 8)
    for whole in (p, None):  # formed by itself, block by block, p is the same
        for one, other in zip(rows.moments(z, maximum, first, whole), (confidence, *expected), strict=True):
            assert torch.equal(one, other)
    mean = (p * z).sum(dim=1, keepdim=True)
    torch.testing.assert_close(expected[0], mean - maximum)
    torch.testing.assert_close(expected[1], (p * (z - mean) ** 2).sum(dim=1, keepdim=True))
    torch.testing.assert_close(expected[2], p.square().sum(dim=1, keepdim=True))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=20))
def test_entropies_lie_within_their_bounds(logits):
    z = torch.tensor([logits], dtype=torch.float64)
    log_p = z.log_softmax(dim=1)
    p, nll = log_p.exp(), -log_p[:, :1]
    gap = (p * z).sum(dim=1, keepdim=True) - z[:, :1]
    log_sum, confidence = -log_p.amax(dim=1, keepdim=True), p.amax(dim=1, keepdim=True)
    entropy = rows.entropy_from_gap(nll, gap, log_sum, confidence, len(logits))
    torch.testing.assert_close(entropy, -(p * log_p).sum(dim=1, keepdim=True), atol=1e-12, rtol=0)


def test_an_entropy_beyond_its_bounds_is_clamped():
    gap, sure = torch.tensor([[1e31], [-1e31], [torch.inf], [torch.nan]]), torch.ones(4, 1)
    entropy = rows.entropy_from_gap(torch.tensor([[1.0], [1.0], [torch.inf], [1.0]]), gap, torch.zeros(4, 1), sure, 100)
    assert entropy[:3].tolist() == [[0.0], [0.0], [0.0]]
    assert entropy[3].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_multiply_accumulates_in_its_output(dtype):
    a, b = torch.randn(4, 6).to(dtype), torch.randn(6, 3).to(dtype)
    out = torch.full((4, 3), torch.nan)
    rows.multiply(a, b, out, scale=2.0)
    rows.multiply(a, b, out, scale=0.5, accumulate=True)
    torch.testing.assert_close(out, 2.5 * (a.float() @ b.float()), atol=0.05, rtol=0.02)
