"""Low precision: losses, statistics and the sums of dW are float32; errors beside the naive formula's."""

import pytest
import torch
import torch.nn.functional as F

from nanolm.loss import LossOptions, linear_nll
from tests.loss.problems import make_problem

DTYPES = [torch.bfloat16, torch.float16]


def relative_error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def low_precision_problem(dtype, **kwargs):
    p = make_problem(num_tokens=256, width=64, num_classes=500, dtype=dtype, **kwargs)
    with torch.no_grad():
        p.weight.mul_(0.3)
    return p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [256, 8])
@pytest.mark.parametrize("options", [LossOptions(), LossOptions(label_smoothing=0.1)], ids=str)
def test_errors_at_most_twice_those_of_the_naive_formula(dtype, rows, options, set_chunk):
    set_chunk(rows)
    p = low_precision_problem(dtype)
    doubles = [tensor.detach().double().requires_grad_() for tensor in p.inputs]
    smoothing = options.label_smoothing

    def naive(hidden, weight):
        return F.cross_entropy(F.linear(hidden, weight), p.targets, label_smoothing=smoothing, reduction="none")

    exact, rounded, ours = naive(*doubles), naive(*p.inputs), linear_nll(*p.arguments, options, reduction="none")
    assert relative_error(ours.objective, exact) <= 2 * relative_error(rounded, exact)
    total = linear_nll(*p.arguments, options)
    gradients = [
        torch.autograd.grad(objective.sum(), inputs)
        for objective, inputs in (
            (exact, doubles),
            (rounded, p.inputs),
            (ours.objective, p.inputs),
            (total.objective, p.inputs),
        )
    ]
    for truth, theirs, recomputed, fused in zip(*gradients, strict=True):
        assert fused.dtype == recomputed.dtype == dtype
        assert relative_error(fused, truth) <= 2 * relative_error(theirs, truth)
        assert relative_error(recomputed, truth) <= 2 * relative_error(theirs, truth)


def test_the_weight_gradient_does_not_lose_digits_with_the_number_of_chunks(set_chunk):
    p = low_precision_problem(torch.bfloat16)
    doubles = [tensor.detach().double().requires_grad_() for tensor in p.inputs]
    objective = F.cross_entropy(F.linear(*doubles), p.targets, reduction="sum")
    exact = torch.autograd.grad(objective, doubles)[1]
    errors = {}
    for rows in (256, 16, 1):
        set_chunk(rows)
        errors[rows] = relative_error(torch.autograd.grad(linear_nll(*p.arguments).objective, p.weight)[0], exact)
    assert errors[1] < 1.5 * errors[256]
    assert errors[16] < 1.5 * errors[256]
    assert errors[1] < 0.005


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_statistics_are_float32(dtype):
    p = low_precision_problem(dtype, bias=True)
    result = linear_nll(*p.arguments, statistics="full")
    for name in ("objective", "nll", "confidence", "entropy", "sum_squared_probabilities", "logit_variance"):
        assert getattr(result, name).dtype == torch.float32, name
    assert {g.dtype for g in torch.autograd.grad(result.objective, p.inputs)} == {dtype}


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_rounds_the_products_and_nothing_else(reduction):
    p = low_precision_problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = F.linear(p.hidden, torch.eye(64))
        assert hidden.dtype == torch.bfloat16
        result = linear_nll(hidden, p.weight, p.targets, reduction=reduction)
        inside = torch.autograd.grad(result.objective.sum(), p.inputs, retain_graph=True)
    outside = torch.autograd.grad(result.objective.sum(), p.inputs)
    assert result.objective.dtype == result.nll.dtype == result.entropy.dtype == torch.float32
    assert inside[0].dtype == inside[1].dtype == torch.float32
    rounded = linear_nll(hidden.detach(), p.weight.detach().bfloat16(), p.targets)
    assert torch.equal(rounded.nll, result.nll)
    exact = linear_nll(p.hidden, p.weight, p.targets)
    torch.testing.assert_close(result.nll, exact.nll, atol=0.1, rtol=0.05)
    for one, other, full in zip(inside, outside, torch.autograd.grad(exact.objective, p.inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
        assert relative_error(one, full.double()) < 0.02


def test_float64_is_kept_and_mixed_inputs_are_promoted():
    p = make_problem()
    assert linear_nll(*p.arguments).objective.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_nll(*p.arguments).objective.dtype == torch.float64
    mixed = linear_nll(p.hidden.float(), p.weight, p.targets)
    assert mixed.objective.dtype == torch.float64
    low = make_problem(dtype=torch.float32)
    hidden = low.hidden.detach().bfloat16().requires_grad_()
    result = linear_nll(hidden, low.weight, low.targets)
    torch.testing.assert_close(result.nll, linear_nll(hidden.float(), low.weight, low.targets).nll)
    assert [g.dtype for g in torch.autograd.grad(result.objective, (hidden, low.weight))] == [
        torch.bfloat16,
        torch.float32,
    ]
