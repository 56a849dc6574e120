"""linear_nll against the textbook, over the options combined; and what must not change its answer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.loss import LossOptions, fused, linear_nll, softmax_nll
from tests.loss.problems import assert_same, assert_statistics, make_problem, pairwise

CASES = pairwise(
    {
        "label_smoothing": (0.0, 0.1),
        "z_loss": (0.0, 0.02),
        "softcap": (None, 2.0),
        "temperature": (1.0, 0.6),
        "ignore_index": (-100, 3),
        "soft": (False, True),
        "bias": (False, True),
        "ignored": (False, True),
        "reduction": ("sum", "mean", "none"),
        "statistics": ("none", "basic", "full"),
        "rows": (1, 4, 100),
        "num_classes": (13, 300),
        "frozen": (None, 0, 1),
    }
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_nll_is_the_reference(case, set_chunk):
    set_chunk(case["rows"])
    names = ("label_smoothing", "z_loss", "softcap", "temperature", "ignore_index")
    options = LossOptions(**{name: case[name] for name in names})
    ignored = options.ignore_index if case["ignored"] else None
    p = make_problem(num_classes=case["num_classes"], bias=case["bias"], soft=case["soft"], ignored=ignored)
    if ignored is None:
        p.targets[p.targets == options.ignore_index] = 0
    if case["frozen"] is not None:
        p.inputs[case["frozen"]].requires_grad_(False)
    answer = p.answer(options)
    result = linear_nll(*p.arguments, options, case["reduction"], case["statistics"])
    assert_statistics(result, answer)
    assert result.count == answer.valid.sum()
    assert (result.confidence is None) == (case["statistics"] == "none")
    assert (result.entropy is None) == (case["statistics"] == "none")
    assert (result.logit_variance is None) == (case["statistics"] != "full")

    if case["reduction"] == "none":
        expected, upstream = answer.objective, np.linspace(-1, 2, len(p.hidden))
        given_upstream = torch.tensor(upstream)
    else:
        scale = 1 / answer.valid.sum() if case["reduction"] == "mean" else 1.0
        expected, upstream = answer.objective.sum() * scale, np.full(len(p.hidden), 0.7 * scale)
        given_upstream = torch.tensor(0.7, dtype=torch.float64)
    np.testing.assert_allclose(result.objective.detach(), expected, rtol=1e-11, atol=1e-11)
    result.objective.backward(given_upstream)
    for tensor, exact in zip(p.inputs, p.gradients(options, upstream), strict=True):
        if tensor.requires_grad:
            np.testing.assert_allclose(tensor.grad, exact, rtol=1e-10, atol=1e-11)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("case", [case for case in CASES if case["num_classes"] == 13][:6], ids=str)
def test_gradcheck(case, reduction, set_chunk):
    set_chunk(case["rows"])
    options = LossOptions(case["label_smoothing"], case["z_loss"], case["softcap"], case["temperature"])
    p = make_problem(num_tokens=6, width=3, bias=case["bias"], soft=case["soft"])
    assert torch.autograd.gradcheck(
        lambda *inputs: (
            linear_nll(
                inputs[0], inputs[1], p.targets, inputs[2] if case["bias"] else None, p.soft_targets, options, reduction
            ).objective
        ),
        p.inputs,
    )


@given(
    num_tokens=st.integers(0, 40),
    num_classes=st.integers(1, 400),
    width=st.integers(1, 6),
    rows=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_agrees_with_the_dense_loss(num_tokens, num_classes, width, rows, seed):
    p = make_problem(num_tokens, width, num_classes, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "rows_per_chunk", lambda *_: rows)
        ours = linear_nll(p.hidden, p.weight, p.targets, statistics="full")
    dense = softmax_nll(p.hidden @ p.weight.T, p.targets)
    assert_same(ours, dense, tolerance=1e-10)
    gradients = [torch.autograd.grad(result.objective, p.inputs) for result in (ours, dense)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("statistics", ["basic", "full"])
def test_chunk_size_does_not_matter(set_chunk, statistics):
    p = make_problem(num_tokens=50, num_classes=301, dtype=torch.float32)
    results, gradients = [], []
    for rows in (50, 1, 7, 49):
        set_chunk(rows)
        results.append(linear_nll(*p.arguments, statistics=statistics))
        gradients.append(torch.autograd.grad(results[-1].objective, p.inputs))
        assert_same(results[-1], results[0], tolerance=2e-6)
        for one, other in zip(gradients[-1], gradients[0], strict=True):
            torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-5)


def test_token_order_does_not_matter(set_chunk):
    set_chunk(8)
    p = make_problem(num_tokens=30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    one = linear_nll(p.hidden, p.weight, p.targets, statistics="full")
    other = linear_nll(p.hidden[order], p.weight, p.targets[order], statistics="full")
    torch.testing.assert_close(one.objective, other.objective)
    torch.testing.assert_close(one.nll[order], other.nll)
    torch.testing.assert_close(one.entropy[order], other.entropy)
    gradients = [torch.autograd.grad(result.objective, p.inputs) for result in (one, other)]
    torch.testing.assert_close(*gradients)


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
    options = LossOptions(label_smoothing=0.1, z_loss=1e-3)
    results = [linear_nll(*p.arguments, options) for _ in range(3)]
    gradients = [torch.autograd.grad(result.objective, p.inputs) for result in results]
    for result, gradient in zip(results[1:], gradients[1:], strict=True):
        assert_same(result, results[0])
        assert all(torch.equal(one, other) for one, other in zip(gradient, gradients[0], strict=True))


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
