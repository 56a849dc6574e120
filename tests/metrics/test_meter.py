import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import NLLResult, bernoulli_nll, softmax_nll
from nanolm.metrics import CalibrationMeter, Measurement


def predictions(num_tokens=500, num_classes=7, scale=2.0, seed=0):
    """Logits and targets of an overconfident model."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_classes, generator=generator, dtype=torch.float64) * scale
    targets = torch.multinomial((logits / 1.7).softmax(dim=1), 1, generator=generator).squeeze(1)
    return logits.float(), targets


def part(result, rows):
    columns = {name: value for name, value in vars(result).items() if name not in ("objective", "count")}
    columns = {name: None if value is None else value[rows] for name, value in columns.items()}
    return NLLResult(objective=result.objective, count=columns["valid"].sum(), **columns)


RESULT = softmax_nll(*predictions())


@given(cuts=st.lists(st.integers(0, 500), max_size=6), data=st.data())
def test_any_division_merged_in_any_order_gives_the_same_metrics(cuts, data):
    whole = CalibrationMeter().update(RESULT)
    edges = [0, *sorted(cuts), 500]
    meters = [CalibrationMeter().update(part(RESULT, slice(a, b))) for a, b in itertools.pairwise(edges)]
    while len(meters) > 1:
        one = meters.pop(data.draw(st.integers(0, len(meters) - 1)))
        other = data.draw(st.integers(0, len(meters) - 1))
        assert meters[other].merge(one) is meters[other]
    assert meters[0].metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    order = torch.from_numpy(np.random.default_rng(len(cuts)).permutation(500))
    assert CalibrationMeter().update(part(RESULT, order)).metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_counters_do_not_stop_at_two_to_the_24():
    meter = CalibrationMeter().update(part(RESULT, slice(0, 8)))
    before = meter.metrics()
    for _ in range(30):
        meter.merge(copy.deepcopy(meter))
    assert meter.num_tokens == 8 << 30
    assert meter.metrics() == pytest.approx(before, rel=1e-9)
    meter.update(part(RESULT, slice(8, 9)))
    assert meter.num_tokens == (8 << 30) + 1


def test_memory_depends_neither_on_tokens_nor_on_classes():
    meter = CalibrationMeter().update(softmax_nll(*predictions(5000, 300)))
    assert meter.tally.bins.numel() == CalibrationMeter().tally.bins.numel() < 50_000


def test_no_tokens_are_a_clear_error():
    logits, targets = predictions(5)
    ignored = CalibrationMeter().update(softmax_nll(logits, torch.full_like(targets, -100)))
    empty, measured = CalibrationMeter(), Measurement("val", "", 3)
    for call in (ignored.metrics, empty.metrics, empty.ece, empty.smooth_ece, measured.metrics, measured.intervals):
        with pytest.raises(DataError, match="without a token"):
            call()


@pytest.mark.parametrize("worst", [-50.0, -1e5, -(2.0**20) - 1, -1e7, -1e38, -math.inf])
@pytest.mark.parametrize("loss", [softmax_nll, lambda z, y: bernoulli_nll(z[:, 1] - z[:, 0], y)])
def test_only_the_nll_of_an_excluded_class_is_infinite(worst, loss):
    """However small a probability is, every other metric is the mean that NumPy takes."""
    logits, targets = torch.tensor([[0.0, worst], [0.0, 1.0], [0.5, 0.0]]), torch.tensor([1, 1, 0])
    result = loss(logits, targets)
    found = CalibrationMeter().update(result).metrics()
    p, y = logits.double().softmax(dim=1).numpy(), np.eye(2)[targets]
    assert found["brier"] == pytest.approx(np.square(p - y).sum(axis=1).mean(), abs=1e-6)
    entropy = torch.special.entr(torch.from_numpy(p)).sum(dim=1).mean().item()
    assert result.entropy.mean().item() == pytest.approx(entropy, abs=1e-6)
    assert found["entropy"] == pytest.approx(entropy, abs=1e-6)


@pytest.mark.parametrize("name", ["nll", "confidence", "entropy", "sum_squared_probabilities"])
def test_nan_in_any_statistic_is_refused_and_adds_nothing(name):
    column = getattr(RESULT, name).clone()
    column[3] = math.nan
    meter = CalibrationMeter().update(RESULT)
    before = meter.metrics()
    logits, targets = predictions(5)
    logits[3, 1] = math.nan
    for broken in (dataclasses.replace(RESULT, **{name: column}), softmax_nll(logits, targets)):
        with pytest.raises(NonFiniteError, match=r"1 of \d+ tokens"):
            meter.update(broken)
    assert meter.metrics() == before


def test_a_probability_of_zero_is_an_infinite_nll_and_nothing_else():
    logits = torch.tensor([[0.0, -math.inf], [0.0, 1.0]])
    metrics = CalibrationMeter().update(softmax_nll(logits, torch.tensor([1, 0]))).metrics()
    assert metrics.pop("nll") == metrics.pop("perplexity") == metrics.pop("entropy_gap") == math.inf
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("targets", [[1, 1, 1], [0, 0, 0]], ids=["all right", "all wrong"])
@pytest.mark.parametrize("size", [20.0, 0.3, 0.0])
def test_the_ends_have_defined_values(targets, size):
    logits = torch.tensor([-size, size]).expand(3, 2)
    meter = CalibrationMeter().update(softmax_nll(logits, torch.tensor(targets)))
    metrics = meter.metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    accuracy = float(targets[0] == (size > 0))
    assert metrics["accuracy"] == accuracy
    assert metrics["ece"] == pytest.approx(abs(metrics["confidence"] - accuracy), abs=1e-8)


def test_one_token_and_one_class():
    one = CalibrationMeter().update(softmax_nll(torch.zeros(1, 1), torch.tensor([0]))).metrics()
    assert (one["nll"], one["accuracy"], one["confidence"], one["ece"], one["brier"]) == (0, 1, 1, 0, 0)
    assert all(math.isfinite(value) for value in one.values())


def test_confidence_one_is_in_the_last_bin():
    bins = CalibrationMeter().update(bernoulli_nll(torch.tensor([200.0, -200.0]), torch.tensor([1, 1]))).reliability()
    assert bins.count == [0] * 14 + [2]
    assert bins.confidence[-1] == 1
    assert bins.accuracy[-1] == 0.5
    assert bins.accuracy[:14] == [0] * 14
