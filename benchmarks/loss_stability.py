"""At which logit textbook formulas of the negative log-likelihood break, beside the forms of nanolm.loss.

    python benchmarks/loss_stability.py

A formula is broken where it is infinite, NaN or more than 10 % off the exact value. The logit z, log-odds of class 1,
is raised in steps of 1/4.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanolm.loss import bernoulli_nll, softmax_nll

ONE, ZERO = torch.tensor([1]), torch.tensor([0])


def two_classes(z: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(z), z])


# Of a wrong answer, class 0, whose exact NLL is ln(1 + exp(z)): about z, so nothing is small or large about it.
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "-ln(1 - sigmoid(z))": lambda z: -(1 - torch.sigmoid(z)).log(),
    "-ln(exp(0) / (exp(0) + exp(z)))": lambda z: -(1 / two_classes(z).exp().sum(dim=0)).log(),
    "-ln(softmax([0, z])[0])": lambda z: -two_classes(z).softmax(dim=0)[0].log(),
    "ln(exp(0) + exp(z)) - 0": lambda z: two_classes(z).exp().sum(dim=0).log(),
    "bernoulli_nll": lambda z: bernoulli_nll(z[None], ZERO).nll,
    "softmax_nll": lambda z: softmax_nll(two_classes(z)[None], ZERO).nll,
}
# Of a right answer, class 1, whose exact NLL is ln(1 + exp(-z)): it shrinks, and a rounded probability of 1 makes it 0.
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "-ln(sigmoid(z))": lambda z: -torch.sigmoid(z).log(),
    "ln(1 + exp(z)) - z": lambda z: (1 + z.exp()).log() - z,
    "-ln(softmax([0, z])[1])": lambda z: -two_classes(z).softmax(dim=0)[1].log(),
    "bernoulli_nll": lambda z: bernoulli_nll(z[None], ONE).nll,
    "softmax_nll": lambda z: softmax_nll(two_classes(z)[None], ONE).nll,
}


def first_break(
    formula: Callable[[Tensor], Tensor], sign: int, dtype: torch.dtype, largest: float
) -> tuple[float, float]:
    """The smallest logit at which a formula for ln(1 + exp(sign·z)) is broken, and what it says; or (inf, NaN)."""
    for z in torch.arange(0, largest, 0.25, dtype=torch.float64):
        exact = torch.logaddexp(sign * z, torch.zeros_like(z)).item()
        found = formula(z.to(dtype)).double().item()
        if not math.isfinite(found) or abs(found - exact) > 0.1 * exact:
            return z.item(), found
    return math.inf, math.nan


def main() -> None:
    for title, formulas, sign in (("wrong answer", WRONG, 1), ("right answer", RIGHT, -1)):
        print(f"\n{title:34} {'float32':>24} {'bfloat16':>24}")
        for name, formula in formulas.items():
            cells = []
            for dtype in (torch.float32, torch.bfloat16):
                z, found = first_break(formula, sign, dtype, 120 if sign > 0 else 60)
                cells.append("holds" if math.isinf(z) else f"z = {z:g}: {found:.3g}")
            print(f"{name:34} {cells[0]:>24} {cells[1]:>24}")


if __name__ == "__main__":
    main()
