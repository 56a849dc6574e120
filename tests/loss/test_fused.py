"""linear_nll against the textbook, over the options combined; and what must not change its answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.loss import LossOptions, linear_nll, softmax_nll
from tests.loss.problems import (
    OPTIONS,
    assert_reduced,
    assert_same,
    assert_statistics,
    combined,
    make_problem,
    take_at_once,
)

CASES = combined(
    60,
    **OPTIONS,
    ignore_index=(-100, 3),
    soft=(False, True),
    bias=(False, True),
    ignored=(False, True),
    reduction=("sum", "mean", "none"),
    statistics=("none", "basic", "full"),
    rows=(1, 4, 100),
    num_classes=(13, 300),
    frozen=(None, 0, 1),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_nll_is_the_reference(case, set_chunk):
    set_chunk(case["rows"])
    options = LossOptions(**{name: case[name] for name in (*OPTIONS, "ignore_index")})
    ignored = options.ignore_index if case["ignored"] else None
    p = make_problem(num_classes=case["num_classes"], bias=case["bias"], soft=case["soft"], ignored=ignored)
    if ignored is None:
        p.targets[p.targets == options.ignore_index] = 0
    if case["frozen"] is not None:
        p.inputs[case["frozen"]].requires_grad_(False)
    result = linear_nll(*p.arguments, options, case["reduction"], case["statistics"])
    answer = p.answer(options)
    assert_statistics(result, answer)
    assert (result.confidence is None) == (result.entropy is None) == (case["statistics"] == "none")
    assert (result.logit_variance is None) == (case["statistics"] != "full")
    p.assert_gradients(assert_reduced(result, answer, case["reduction"]))


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("case", [case for case in CASES if case["num_classes"] == 13][:6], ids=str)
def test_gradcheck(case, reduction, set_chunk):
    set_chunk(case["rows"])
    options = LossOptions(**{name: case[name] for name in OPTIONS})
    p = make_problem(num_tokens=6, width=3, bias=case["bias"], soft=case["soft"])

    def objective(hidden, weight, bias=None):
        return linear_nll(hidden, weight, p.targets, bias, p.soft_targets, options, reduction).objective

    assert torch.autograd.gradcheck(objective, p.inputs)


@given(
    num_tokens=st.integers(0, 40),
    num_classes=st.integers(1, 400),
    width=st.integers(1, 6),
    num_rows=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_agrees_with_the_dense_loss(num_tokens, num_classes, width, num_rows, seed):
    p = make_problem(num_tokens, width, num_classes, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        take_at_once(patch, num_rows)
        ours = linear_nll(p.hidden, p.weight, p.targets, statistics="full")
    dense = softmax_nll(p.hidden @ p.weight.T, p.targets)
    assert_same(ours, dense, tolerance=1e-10)
    gradients = [torch.autograd.grad(result.objective, p.inputs) for result in (ours, dense)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("statistics", ["basic", "full"])
def test_chunk_size_does_not_matter(set_chunk, statistics):
    p = make_problem(num_tokens=50, num_classes=301, dtype=torch.float32)
    results, gradients = [], []
    for rows in (50, 1, 7, 49):
        set_chunk(rows)
        results.append(linear_nll(*p.arguments, statistics=statistics))
        gradients.append(torch.autograd.grad(results[-1].objective, p.inputs))
        assert_same(results[-1], results[0], tolerance=2e-6)
        torch.testing.assert_close(gradients[-1], gradients[0], atol=5e-6, rtol=1e-5)


def test_token_order_does_not_matter(set_chunk):
    set_chunk(8)
    p = make_problem(num_tokens=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one, other = (linear_nll(p.hidden[rows], p.weight, p.targets[rows], statistics="full") for rows in (..., order))
    torch.testing.assert_close(one.objective, other.objective)
    torch.testing.assert_close((one.nll[order], one.entropy[order]), (other.nll, other.entropy))
    torch.testing.assert_close(*(torch.autograd.grad(result.objective, p.inputs) for result in (one, other)))


def test_a_shift_of_all_logits_does_not_matter():
    p = make_problem(bias=True, num_classes=300)
    shifted = linear_nll(p.hidden, p.weight, p.targets, p.bias + 1000, statistics="full")
    assert_same(shifted, linear_nll(*p.arguments, statistics="full"), tolerance=1e-9)


@pytest.mark.parametrize("statistics", ["none", "basic", "full"])
def test_with_and_without_gradients_the_numbers_are_the_same(statistics):
    p = make_problem(num_classes=300, dtype=torch.float32)
    with_gradients = linear_nll(*p.arguments, statistics=statistics)
    with torch.no_grad():
        without = linear_nll(*p.arguments, statistics=statistics)
    assert not without.objective.requires_grad
    for name in ("objective", "nll", "confidence", "correct", "logit_variance"):
        one, other = getattr(with_gradients, name), getattr(without, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    assert (without.entropy is not None) == (statistics == "full")


def test_repeated_calls_are_bitwise_equal(set_chunk):
    set_chunk(16)
    p = make_problem(num_tokens=64, num_classes=2000, width=32, dtype=torch.float32, bias=True)
    results = [linear_nll(*p.arguments, LossOptions(label_smoothing=0.1, z_loss=1e-3)) for _ in range(2)]
    assert_same(*results)
    gradients = [torch.autograd.grad(result.objective, p.inputs) for result in results]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("num_classes", [13, 300])
@pytest.mark.parametrize("target", [0, 1, 12])
def test_correct_means_the_first_arg_max_where_all_logits_are_equal(num_classes, target):
    result = linear_nll(torch.randn(6, 4), torch.zeros(num_classes, 4), torch.full((6,), target))
    assert result.correct.tolist() == [target == 0] * 6
    torch.testing.assert_close(result.confidence, torch.full((6,), 1 / num_classes))


def test_the_entropy_of_the_backward_product_is_as_exact_as_stated():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(64, 32, generator=generator), torch.randn(1000, 32, generator=generator)
    targets = torch.randint(1000, (64,), generator=generator)
    for largest, tolerance in ((5, 5e-6), (100, 2e-4)):
        scale = largest / (hidden @ weight.T).abs().max()
        result = linear_nll((scale * hidden).requires_grad_(), weight, targets)
        exact = softmax_nll((scale * hidden).double() @ weight.double().T, targets)
        torch.testing.assert_close(result.entropy.double(), exact.entropy, atol=tolerance, rtol=0)
