import dataclasses
import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolm.errors import DataError, NonFiniteError
from nanolm.loss import NLLResult, bernoulli_nll, linear_nll, softmax_nll
from nanolm.metrics import CalibrationMeter, GroupedMeter


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
def test_any_division_merged_in_any_order_gives_the_same_bits(cuts, data):
    whole = CalibrationMeter().update(RESULT)
    edges = [0, *sorted(cuts), 500]
    meters = [CalibrationMeter().update(part(RESULT, slice(a, b))) for a, b in itertools.pairwise(edges)]
    while len(meters) > 1:
        one = meters.pop(data.draw(st.integers(0, len(meters) - 1)))
        other = data.draw(st.integers(0, len(meters) - 1))
        assert meters[other].merge(one) is meters[other]
    assert meters[0].metrics() == whole.metrics()
    order = torch.from_numpy(np.random.default_rng(len(cuts)).permutation(500))
    assert CalibrationMeter().update(part(RESULT, order)).metrics() == whole.metrics()


def test_counters_do_not_stop_at_two_to_the_24():
    meter = CalibrationMeter().update(part(RESULT, slice(0, 8)))
    before = meter.metrics()
    for _ in range(30):
        doubled = CalibrationMeter()
        doubled.load_state_dict(meter.state_dict())
        meter.merge(doubled)
    assert meter.num_tokens == 8 << 30
    after = meter.metrics()
    for name in ("nll", "ece", "accuracy", "entropy", "brier", "smooth_ece"):
        assert after[name] == pytest.approx(before[name], rel=1e-9), name
    meter.update(part(RESULT, slice(8, 9)))
    assert meter.num_tokens == (8 << 30) + 1


def test_memory_depends_neither_on_tokens_nor_on_classes():
    def size(meter):
        return sum(array.numel() for array in meter.state_dict()["arrays"])

    many = CalibrationMeter().update(softmax_nll(*predictions(5000, 300)))
    assert size(many) == size(CalibrationMeter())


def test_the_state_goes_through_a_file_without_code():
    meter = CalibrationMeter().update(RESULT)
    file = io.BytesIO()
    torch.save(meter.state_dict(), file)
    file.seek(0)
    restored = CalibrationMeter()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert restored.metrics() == meter.metrics()


def test_ignored_tokens_count_nowhere():
    logits, targets = predictions()
    ignored = targets.clone()
    ignored[::3] = -100
    kept = ignored != -100
    expected = CalibrationMeter().update(softmax_nll(logits[kept], targets[kept])).metrics()
    assert CalibrationMeter().update(softmax_nll(logits, ignored)).metrics() == expected


def test_a_figure_that_an_update_could_not_feed_is_left_out():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(20, 4), torch.randn(9, 4), torch.randint(9, (20,))
    basic = CalibrationMeter().update(linear_nll(hidden, weight, targets)).metrics()
    full = CalibrationMeter().update(linear_nll(hidden, weight, targets, statistics="full"))
    assert not basic.keys() & {"entropy", "entropy_gap", "brier"}
    assert full.metrics().keys() == basic.keys() | {"entropy", "entropy_gap", "brier"}
    with pytest.raises(ValueError, match='found "none"'):
        full.update(linear_nll(hidden, weight, targets, statistics="none"))
    full.update(linear_nll(hidden, weight, targets))
    assert full.metrics().keys() == basic.keys()


def test_no_tokens_are_a_clear_error():
    with pytest.raises(DataError, match="without a token"):
        CalibrationMeter().metrics()
    logits, targets = predictions(5)
    meter = CalibrationMeter().update(softmax_nll(logits, torch.full_like(targets, -100)))
    with pytest.raises(DataError, match="without a token"):
        meter.metrics()


def test_nan_is_refused_and_leaves_the_meter_as_it_was():
    meter = CalibrationMeter().update(RESULT)
    before = meter.metrics()
    logits, targets = predictions(5)
    logits[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"1 of 5 tokens have NaN"):
        meter.update(softmax_nll(logits, targets))
    assert meter.metrics() == before


@pytest.mark.parametrize("worst", [-50.0, -1e5, -(2.0**20) - 1, -1e7, -1e38, -math.inf])
@pytest.mark.parametrize("loss", [softmax_nll, lambda z, y: bernoulli_nll(z[:, 1] - z[:, 0], y)])
def test_only_the_nll_of_an_excluded_class_is_infinite(worst, loss):
    """However small a probability is, every other metric is the mean that NumPy takes."""
    logits, targets = torch.tensor([[0.0, worst], [0.0, 1.0], [0.5, 0.0]]), torch.tensor([1, 1, 0])
    result = loss(logits, targets)
    found = CalibrationMeter().update(result).metrics()
    p, y = logits.double().softmax(dim=1).numpy(), np.eye(2)[targets]
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == targets.numpy()
    assert found["brier"] == pytest.approx(np.square(p - y).sum(axis=1).mean(), abs=1e-6)
    assert found["top_label_brier"] == pytest.approx(np.square(confidence - correct).mean(), abs=1e-6)
    assert 0 <= found["top_label_resolution"] <= found["top_label_uncertainty"] + 1e-9
    entropy = torch.special.entr(torch.from_numpy(p)).sum(dim=1).mean().item()
    assert result.entropy.mean().item() == pytest.approx(entropy, abs=1e-6)
    assert found["entropy"] == pytest.approx(entropy, abs=1e-6)
    grouped = GroupedMeter(2).update(result, torch.tensor([1, 0, 0])).metrics()
    assert grouped[0]["nll"] < 1
    assert grouped[1]["brier"] == pytest.approx(2)


@pytest.mark.parametrize("name", ["nll", "confidence", "entropy", "sum_squared_probabilities"])
def test_nan_in_any_statistic_is_refused_and_adds_nothing(name):
    column = getattr(RESULT, name).clone()
    column[3] = math.nan
    meter = CalibrationMeter().update(RESULT)
    before = meter.metrics()
    with pytest.raises(NonFiniteError, match="1 of 500 tokens"):
        meter.update(dataclasses.replace(RESULT, **{name: column}))
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
    assert metrics["mce"] == pytest.approx(metrics["ece"], abs=1e-8)
    assert metrics["aurc"] == 1 - accuracy


def test_one_token_and_one_class():
    one = CalibrationMeter().update(softmax_nll(torch.zeros(1, 1), torch.tensor([0]))).metrics()
    assert (one["nll"], one["accuracy"], one["confidence"], one["ece"], one["brier"]) == (0, 1, 1, 0, 0)
    assert all(math.isfinite(value) for value in one.values())


def test_confidence_one_is_in_the_last_bin():
    bins = CalibrationMeter().update(bernoulli_nll(torch.tensor([200.0, -200.0]), torch.tensor([1, 1]))).reliability()
    assert bins.count.tolist() == [0] * 14 + [2]
    assert bins.confidence[-1] == 1
    assert bins.accuracy[-1] == 0.5
    assert bins.accuracy[:14].tolist() == [0] * 14


def test_groups_are_meters_of_their_own():
    group = torch.arange(500) % 3
    meters = GroupedMeter(4)
    meters.update(part(RESULT, slice(0, 200)), group[:200])
    meters.merge(GroupedMeter(4).update(part(RESULT, slice(200, 500)), group[200:]))
    found = meters.metrics()
    assert meters.num_tokens().tolist() == [167, 167, 166, 0]
    assert found[3] is None
    for number in range(3):
        alone = CalibrationMeter().update(part(RESULT, group == number)).metrics()
        for name, value in found[number].items():
            assert value == pytest.approx(alone[name], abs=1e-8), name
