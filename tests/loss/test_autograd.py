"""linear_nll as a node of a graph: what may come after it, before it, or twice."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from nanolm.errors import ConfigError
from nanolm.loss import LossOptions, linear_nll
from tests.loss.problems import make_problem

SMOOTHED = LossOptions(label_smoothing=0.1, z_loss=0.01)


def naive(p, reduction="sum"):
    return F.cross_entropy(F.linear(p.hidden, p.weight, p.bias), p.targets, reduction=reduction)


@pytest.fixture(autouse=True)
def small_chunks(set_chunk):
    set_chunk(4)


def test_loss_not_the_last_operation():
    p = make_problem(bias=True)

    def after(objective):
        return (objective.square().sum() / 3).exp().log1p()

    for reduction in ("sum", "mean", "none"):
        ours = grad(after(linear_nll(*p.arguments, reduction=reduction).objective / 100), p.inputs)
        torch.testing.assert_close(ours, grad(after(naive(p, reduction) / 100), p.inputs))


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_backward_twice(reduction):
    p = make_problem(bias=True)
    objective = linear_nll(*p.arguments, SMOOTHED, reduction).objective.sum()
    first = grad(objective, p.inputs, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()  # what was handed over belongs to the caller
    second = grad(3 * objective, p.inputs, retain_graph=True)
    torch.testing.assert_close(second, tuple(3 * gradient for gradient in kept))
    only_weight = grad(objective, p.weight, retain_graph=True)
    torch.testing.assert_close(only_weight[0], kept[1])
    objective.backward()
    with pytest.raises(RuntimeError, match="second time"):
        objective.backward()


def test_differentiating_a_gradient_is_refused():
    p = make_problem()
    with pytest.raises(ConfigError, match="create_graph"):
        grad(linear_nll(*p.arguments).objective, p.hidden, create_graph=True)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_each_input_frozen_in_turn(frozen, reduction):
    p = make_problem(bias=True)
    expected = grad(naive(p), p.inputs)
    for index in frozen:
        p.inputs[index].requires_grad_(False)
    objective = linear_nll(*p.arguments, reduction=reduction).objective.sum()
    assert objective.requires_grad == (len(frozen) < 3)
    if objective.requires_grad:
        objective.backward()
    for index, (tensor, exact) in enumerate(zip(p.inputs, expected, strict=True)):
        torch.testing.assert_close(tensor.grad, None if index in frozen else exact)


def test_gradient_accumulation_is_one_big_batch():
    p = make_problem(num_tokens=40)
    expected = grad(naive(p), p.inputs)
    for part in torch.arange(40).split(7):
        linear_nll(p.hidden[part], p.weight, p.targets[part]).objective.backward()
    torch.testing.assert_close((p.hidden.grad, p.weight.grad), expected)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_tied_embedding(reduction):
    weight = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: linear_nll(w, w, torch.arange(9), reduction=reduction).objective, weight, nondet_tol=1e-12
    )


def test_a_weight_changed_before_backward_is_refused_as_by_torch():
    p = make_problem()
    objective = linear_nll(*p.arguments, reduction="none").objective.sum()
    with torch.no_grad():
        p.weight += 1
    with pytest.raises(RuntimeError, match="inplace operation"):
        objective.backward()


def test_activation_checkpointing_around_it():
    p = make_problem()
    expected = grad(naive(p), p.inputs)
    objective = torch.utils.checkpoint.checkpoint(
        lambda hidden, weight: linear_nll(hidden, weight, p.targets).objective, *p.inputs, use_reentrant=False
    )
    torch.testing.assert_close(grad(objective, p.inputs), expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_compile_around_it(backend, reduction):
    def step(x, weight, targets):
        result = linear_nll(torch.tanh(x), weight, targets, reduction=reduction)
        return (2 * result.objective.square()).sum(), result.nll, result.entropy, result.correct

    p = make_problem(num_classes=300)
    arguments = (p.hidden, p.weight, p.targets)
    expected = step(*arguments)
    expected_gradients = grad(expected[0], p.inputs)
    torch.compiler.reset()
    compiled = torch.compile(step, backend=backend)
    for _ in range(2):
        found = compiled(*arguments)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad(found[0], p.inputs), expected_gradients)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments)[1], expected[1])
