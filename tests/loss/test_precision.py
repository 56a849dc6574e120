"""Low precision: losses, statistics and the sums of dW are float32; errors compared with those of the naive formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

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
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_errors_at_most_twice_those_of_the_naive_formula(dtype, rows, smoothing, set_chunk):
    set_chunk(rows)
    p, options = low_precision_problem(dtype), LossOptions(smoothing)
    doubles = [tensor.detach().double().requires_grad_() for tensor in p.inputs]

    def naive(hidden, weight):
        return F.cross_entropy(F.linear(hidden, weight), p.targets, label_smoothing=smoothing, reduction="none")

    exact, rounded = naive(*doubles), naive(*p.inputs)
    ours = linear_nll(*p.arguments, options, reduction="none").objective
    assert relative_error(ours, exact) <= 2 * relative_error(rounded, exact)
    truths, theirs = grad(exact.sum(), doubles), grad(rounded.sum(), p.inputs)
    for objective in (ours.sum(), linear_nll(*p.arguments, options).objective):  # recomputed in backward, and not
        for truth, their, found in zip(truths, theirs, grad(objective, p.inputs), strict=True):
            assert found.dtype == dtype
            assert relative_error(found, truth) <= 2 * relative_error(their, truth)


def test_the_weight_gradient_does_not_lose_digits_with_the_number_of_chunks(set_chunk):
    p = low_precision_problem(torch.bfloat16)
    doubles = [tensor.detach().double().requires_grad_() for tensor in p.inputs]
    exact = grad(F.cross_entropy(F.linear(*doubles), p.targets, reduction="sum"), doubles)[1]
    errors = {}
    for rows in (256, 16, 1):
        set_chunk(rows)
        errors[rows] = relative_error(grad(linear_nll(*p.arguments).objective, p.weight)[0], exact)
    assert max(errors[1], errors[16]) < 1.5 * errors[256]
    assert errors[1] < 0.005


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_statistics_are_float32(dtype):
    p = low_precision_problem(dtype, bias=True)
    result = linear_nll(*p.arguments, statistics="full")
    for name in ("objective", "nll", "confidence", "entropy", "sum_squared_probabilities", "logit_variance"):
        assert getattr(result, name).dtype == torch.float32, name
    assert {g.dtype for g in grad(result.objective, p.inputs)} == {dtype}


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_autocast_rounds_the_products_and_nothing_else(reduction):
    p = low_precision_problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = F.linear(p.hidden, torch.eye(64))
        assert hidden.dtype == torch.bfloat16
        result = linear_nll(hidden, p.weight, p.targets, reduction=reduction)
        inside = grad(result.objective.sum(), p.inputs, retain_graph=True)
    outside = grad(result.objective.sum(), p.inputs)
    assert result.objective.dtype == result.nll.dtype == result.entropy.dtype == torch.float32
    assert inside[0].dtype == inside[1].dtype == torch.float32
    rounded = linear_nll(hidden.detach(), p.weight.detach().bfloat16(), p.targets)
    assert torch.equal(rounded.nll, result.nll)
    exact = linear_nll(p.hidden, p.weight, p.targets)
    torch.testing.assert_close(result.nll, exact.nll, atol=0.1, rtol=0.05)
    torch.testing.assert_close(inside, outside, rtol=0.02, atol=0.02)
    for one, full in zip(inside, grad(exact.objective, p.inputs), strict=True):
        assert relative_error(one, full.double()) < 0.02


def test_float64_is_kept_and_mixed_inputs_are_promoted():
    p = make_problem()
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            assert linear_nll(*p.arguments).objective.dtype == torch.float64
    assert linear_nll(p.hidden.float(), p.weight, p.targets).objective.dtype == torch.float64
    low = make_problem(dtype=torch.float32)
    hidden = low.hidden.detach().bfloat16().requires_grad_()
    result = linear_nll(hidden, low.weight, low.targets)
    torch.testing.assert_close(result.nll, linear_nll(hidden.float(), low.weight, low.targets).nll)
    assert [g.dtype for g in grad(result.objective, (hidden, low.weight))] == [torch.bfloat16, torch.float32]
