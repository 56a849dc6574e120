"""The losses from given logits, against the textbook."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nanolm.loss import LossOptions, NLLResult, bernoulli_nll, reference, softmax_nll
from tests.loss.problems import OPTIONS, assert_reduced, assert_statistics, combined, make_problem


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chosen", combined(30, **OPTIONS, ignore_index=(-100, 3), reduction=("sum", "mean", "none")))
def test_softmax_nll_is_the_reference(chosen, soft):
    options = LossOptions(**{name: value for name, value in chosen.items() if name != "reduction"})
    p = make_problem(soft=soft, ignored=options.ignore_index)
    logits = p.logits
    result, answer = softmax_nll(logits, p.targets, p.soft_targets, options, chosen["reduction"]), p.answer(options)
    assert_statistics(result, answer)
    gradient = assert_reduced(result, answer, chosen["reduction"])
    torch.testing.assert_close(logits.grad, torch.from_numpy(gradient), atol=1e-11, rtol=0)
    assert torch.autograd.gradgradcheck(lambda z: softmax_nll(z, p.targets, p.soft_targets, options).objective, logits)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chosen", combined(16, **OPTIONS))
def test_bernoulli_nll_is_softmax_nll_of_two_logits(chosen, soft):
    options = LossOptions(**chosen)
    logits = torch.tensor([0.0, 1.5, -2.0, 7.0, -0.1, 30.0, 0.0, -5.0], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0.0, 1.0, 1.0, 0.0, -100, 1.0, 1.0, 0.0], dtype=torch.float64)
    if soft:
        targets[1], targets[3] = 0.3, 0.8
    valid = targets >= 0
    shares = torch.where(valid, targets, 0)
    pair = torch.stack([torch.zeros_like(logits), logits], dim=1)
    two = softmax_nll(
        pair, torch.where(valid, (shares > 0.5).long(), -100), torch.stack([1 - shares, shares], dim=1), options, "none"
    )
    one = bernoulli_nll(logits, targets, options, "none")
    for field in fields(NLLResult):
        if field.name != "nll" or not soft:
            torch.testing.assert_close(getattr(one, field.name), getattr(two, field.name), msg=field.name)
    upstream = torch.linspace(-1, 2, 8, dtype=torch.float64)
    gradients = [torch.autograd.grad(r.objective, logits, upstream, retain_graph=True)[0] for r in (one, two)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradgradcheck(lambda z: bernoulli_nll(z, targets, options).objective, logits)


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(-700, 700)), min_size=1, max_size=9))
def test_bernoulli_nll_is_the_textbook_formula(pairs):
    y, z = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    result = bernoulli_nll(z, y, reduction="mean")
    assert result.objective.item() == pytest.approx(reference.binary_nll_from_logits(y, z), rel=1e-12, abs=1e-300)
    assert result.nll.sum().item() == pytest.approx(F.binary_cross_entropy_with_logits(z, y, reduction="sum").item())


def test_bernoulli_correct_is_a_threshold_with_the_first_arg_max_at_ties():
    result = bernoulli_nll(torch.tensor([0.0, 0.0, 1e-30, -1e-30]), torch.tensor([0, 1, 1, 1]))
    assert result.correct.tolist() == [True, False, True, False]
    assert result.confidence.tolist() == [0.5] * 4


def test_soft_binary_targets_give_the_expected_nll():
    z, y = torch.tensor([1.3], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)
    p = torch.sigmoid(z)
    torch.testing.assert_close(bernoulli_nll(z, y).nll, -(y * p.log() + (1 - y) * (1 - p).log()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits = torch.randn(5, 7).to(dtype).requires_grad_()
    several = softmax_nll(logits, torch.arange(5))
    for result in (several, bernoulli_nll(logits[:, 0], torch.tensor([0, 1, 0, 1, 1]))):
        assert {result.objective.dtype, result.nll.dtype, result.entropy.dtype} == {torch.float32}
        result.objective.backward()
    assert logits.grad.dtype == dtype
    exact = softmax_nll(logits.detach().double(), torch.arange(5))
    torch.testing.assert_close(several.nll.double(), exact.nll, atol=1e-6, rtol=1e-6)
