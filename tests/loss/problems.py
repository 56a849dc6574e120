"""Problems with a known answer, shared by the tests of nanolm.loss."""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import Tensor

from nanolm.loss import LossOptions, NLLResult, reference, rows

STATISTICS = ("nll", "valid", "confidence", "correct", "entropy", "sum_squared_probabilities", "logit_variance")
OPTIONS = {
    "label_smoothing": (0.0, 0.1),
    "z_loss": (0.0, 0.02),
    "softcap": (None, 2.0),
    "temperature": (1.0, 0.6),
}


@dataclass
class Problem:
    """A head, its tokens and targets; gradients are wanted for hidden, weight and bias."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None
    soft_targets: Tensor | None

    @property
    def inputs(self) -> list[Tensor]:
        return [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        return self.hidden, self.weight, self.targets, self.bias, self.soft_targets

    @property
    def logits(self) -> Tensor:
        """(N, V) logits with a graph of their own."""
        return torch.nn.functional.linear(self.hidden, self.weight, self.bias).detach().requires_grad_()

    def answer(self, options: LossOptions) -> reference.Objective:
        """The reference's answer to this problem."""
        return reference.softmax_objective(self.logits.detach(), self.targets, options, self.soft_targets)

    def assert_gradients(self, residual: np.ndarray) -> None:
        """The accumulated gradients of the inputs are those of this gradient in the logits."""
        weight, hidden = (tensor.detach().numpy() for tensor in (self.weight, self.hidden))
        exact = residual @ weight, residual.T @ hidden, residual.sum(axis=0)
        for tensor, gradient in zip(self.inputs, exact, strict=False):
            if tensor.requires_grad:
                np.testing.assert_allclose(tensor.grad, gradient, rtol=1e-10, atol=1e-11)
            else:
                assert tensor.grad is None


def make_problem(
    num_tokens=11, width=5, num_classes=13, *, bias=False, soft=False, dtype=torch.float64, seed=0, ignored=-100
) -> Problem:
    """A random problem with two tokens of the target ``ignored`` unless it is None."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(num_classes, (num_tokens,), generator=generator)
    if ignored is not None and num_tokens > 5:
        targets[[1, 5]] = ignored
    return Problem(
        hidden=normal(num_tokens, width).requires_grad_(),
        weight=normal(num_classes, width).requires_grad_(),
        targets=targets,
        bias=normal(num_classes).requires_grad_() if bias else None,
        soft_targets=normal(num_tokens, num_classes).softmax(dim=1) if soft else None,
    )


def take_at_once(patch: pytest.MonkeyPatch, num_rows: int) -> None:
    """Give the CPU a workspace for so many tokens."""
    patch.setitem(rows.WORKSPACES, "cpu", rows.Workspace(0, 2**62, num_rows))


def assert_reduced(result: NLLResult, answer: reference.Objective, reduction: str) -> np.ndarray:
    """Compare the objective, go backward from it with uneven factors, and return the gradient in the logits."""
    if reduction == "none":
        expected, upstream = answer.objective, np.linspace(-1, 2, len(answer.nll))
        result.objective.backward(torch.from_numpy(upstream))
    else:
        share = 1 / answer.valid.sum() if reduction == "mean" else 1.0
        expected, upstream = answer.objective.sum() * share, np.full(len(answer.nll), 0.7 * share)
        result.objective.backward(torch.tensor(0.7, dtype=torch.float64))
    np.testing.assert_allclose(result.objective.detach(), expected, rtol=1e-11, atol=1e-11)
    return upstream[:, None] * answer.gradient


def assert_statistics(result: NLLResult, answer: reference.Objective) -> None:
    """Every statistic that the result has is the reference's."""
    assert result.count == answer.valid.sum()
    for name in STATISTICS:
        found = getattr(result, name)
        if found is not None:
            assert not found.requires_grad, name
            np.testing.assert_allclose(found, getattr(answer, name), atol=1e-10, rtol=1e-10, err_msg=name)


def assert_same(one: NLLResult, other: NLLResult, tolerance: float = 0.0) -> None:
    """Two results are equal field by field, NaN where NaN, to a tolerance."""
    for field in fields(NLLResult):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            a, b = a.detach().double(), b.detach().double()
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance, err_msg=field.name)


def combined(count: int, **factors: tuple) -> list[dict]:
    """So many random combinations of the factors' values, the same in every session."""
    random = np.random.default_rng(0)
    return [{name: values[random.integers(len(values))] for name, values in factors.items()} for _ in range(count)]
