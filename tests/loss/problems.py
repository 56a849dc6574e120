"""Problems with a known answer, shared by the tests of nanolm.loss."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from nanolm.loss import LossOptions, NLLResult, reference

STATISTICS = ("nll", "valid", "confidence", "correct", "entropy", "sum_squared_probabilities", "logit_variance")


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

    def answer(self, options: LossOptions) -> reference.Objective:
        """The reference's answer to this problem."""
        u = _array(self.hidden) @ _array(self.weight).T
        if self.bias is not None:
            u = u + _array(self.bias)
        soft_targets = None if self.soft_targets is None else _array(self.soft_targets)
        return reference.softmax_objective(u, self.targets.numpy(), options, soft_targets)

    def gradients(self, options: LossOptions, upstream: np.ndarray) -> list[np.ndarray]:
        """The reference's gradients of Σ upstream · objective in the inputs."""
        residual = upstream[:, None] * self.answer(options).gradient
        gradients = [residual @ _array(self.weight), residual.T @ _array(self.hidden), residual.sum(axis=0)]
        return gradients[: len(self.inputs)]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def make_problem(
    num_tokens=11, width=5, num_classes=13, *, bias=False, soft=False, dtype=torch.float64, seed=0, ignored=-100
) -> Problem:
    """A random problem, float64 unless told otherwise, with two tokens of the target ``ignored`` unless it is None."""
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


def assert_statistics(result: NLLResult, answer: reference.Objective, tolerance: float = 1e-10) -> None:
    """Every statistic that the result has is the reference's."""
    for name in STATISTICS:
        found = getattr(result, name)
        if found is not None:
            assert not found.requires_grad, name
            np.testing.assert_allclose(
                found.numpy(), getattr(answer, name), atol=tolerance, rtol=tolerance, err_msg=name
            )


def assert_same(one: NLLResult, other: NLLResult, tolerance: float = 0.0) -> None:
    """Two results are equal field by field, NaN where NaN, to a tolerance."""
    for field in fields(NLLResult):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            torch.testing.assert_close(
                a.double(),
                b.double(),
                atol=tolerance,
                rtol=tolerance,
                equal_nan=True,
                msg=lambda m, f=field.name: f"{f}: {m}",
            )


def pairwise(factors: dict[str, tuple]) -> list[dict]:
    """Combinations of the factors' values so that each pair of values of two factors occurs together."""
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        for x in range(len(factors[a]))
        for y in range(len(factors[b]))
    }
    random, rows = np.random.default_rng(0), []
    while missing:
        candidates = [{name: int(random.integers(len(factors[name]))) for name in names} for _ in range(200)]
        gains = [sum(row[a] == x and row[b] == y for (a, x), (b, y) in missing) for row in candidates]
        best = candidates[int(np.argmax(gains))]
        missing = {pair for pair in missing if not all(best[name] == index for name, index in pair)}
        rows.append(best)
    return [{name: factors[name][index] for name, index in row.items()} for row in rows]
