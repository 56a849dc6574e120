"""The instability itself: where the formulas of a textbook break, and that the package's forms do not break there."""

import math

import pytest
import torch

from benchmarks.loss_stability import RIGHT, WRONG, first_break

# The first logit, raised in steps of 1/4, at which a formula is infinite, NaN or 10 % off; and its value there.
BREAKS = [
    # 1 - sigmoid(z) is 0 as soon as sigmoid(z) rounds to 1: long before exp overflows, and at once in bfloat16
    (WRONG, "-ln(1 - sigmoid(z))", torch.float32, 16.75, math.inf),
    (WRONG, "-ln(1 - sigmoid(z))", torch.bfloat16, 6.25, math.inf),
    # exp(z) overflows at z = 88.7, in bfloat16 too: it has float32's range
    (WRONG, "-ln(exp(0) / (exp(0) + exp(z)))", torch.float32, 88.75, math.inf),
    (WRONG, "ln(exp(0) + exp(z)) - 0", torch.bfloat16, 88.75, math.inf),
    # a stable softmax still gives a probability that underflows, and its logarithm comes too late
    (WRONG, "-ln(softmax([0, z])[0])", torch.float32, 104.0, math.inf),
    # where the answer is right, a probability near 1 has no digits left for the distance to 1
    (RIGHT, "-ln(sigmoid(z))", torch.bfloat16, 4.25, 0.0157),
    (RIGHT, "ln(1 + exp(z)) - z", torch.float32, 13.0, 1.9e-6),
]


@pytest.mark.parametrize(("formulas", "name", "dtype", "breaks_at", "value"), BREAKS)
def test_textbook_formulas_break(formulas, name, dtype, breaks_at, value):
    z, found = first_break(formulas[name], 1 if formulas is WRONG else -1, dtype, largest=120)
    assert z == pytest.approx(breaks_at, abs=1)  # a step or two: exp differs between processors
    assert found == pytest.approx(value, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stable_forms_hold(dtype):
    for formula, sign, largest in (
        (WRONG["bernoulli_nll"], 1, 400),
        (WRONG["softmax_nll"], 1, 400),
        (RIGHT["bernoulli_nll"], -1, 60),
    ):
        assert first_break(formula, sign, dtype, largest)[0] == math.inf
