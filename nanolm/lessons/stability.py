"""The same loss from logits and from probabilities: exact, or infinite, clipped, and not a number."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.lessons.step import Step
from nanolm.loss import bernoulli_nll, softmax_nll
from nanolm.loss import reference as exact
from nanolm.loss.reference import Array

CLIP = 1e-12


def stable_binary() -> Step:
    """Compute -ln(1 - σ(z)) of a confident mistake from probabilities, where it breaks, and from the logit."""
    step = Step(
        title="From logits it is stable, from probabilities it breaks",
        formula="-ln(1 - σ(z)) = max(z, 0) + ln(1 + exp(-|z|))",
        about="The label is 0 and the model says ŷ = σ(z); label 1 and ŷ near 0 is its mirror image. In float32, ŷ "
        f"is rounded to 1 above z = {24 * math.log(2):.1f} and -ln(1 - ŷ) is infinite. Clipping ŷ at {CLIP:g} makes "
        f"it {-math.log(CLIP):.1f} for every worse mistake, with a gradient of 0: the worst mistakes teach nothing. "
        f"(In float32, where 1 - {CLIP:g} is 1, the clip does nothing.) From the logit it is exact.",
    )
    logits = [2.0, 10.0, 20.0, 40.0, 1000.0]
    ours, truth = _binary_nll(torch.tensor(logits)), [exact.binary_nll_from_logits([0], [z]) for z in logits]
    step.column("logit", logits, "g")
    step.column("naive, float32", _naive_binary(torch.tensor(logits)), "digits")
    step.column("clipped, float64", _clipped(np.array(logits)), "digits")
    step.column("bernoulli_nll, float32", ours, "digits")
    step.column("exact", truth, "digits")
    for z, found, expected in zip(logits, ours, truth, strict=True):
        step.identity(f"bernoulli_nll at z = {z:g}, in float32", found, expected, 1e-6)
    grid = torch.linspace(0, 50, 201)
    naive = _naive_binary(grid)
    step.plot("logit of a mistake", "loss (nats)")
    step.line("naive, float32, until it is infinite", grid[naive.isfinite()], naive[naive.isfinite()])
    step.line(f"clipped at {CLIP:g}, float64", grid, _clipped(grid.numpy()))
    step.dots("bernoulli_nll, float32", grid[::10], _binary_nll(grid[::10]))
    return step


def _naive_binary(logits: Tensor) -> Tensor:
    return -torch.log(1 - torch.sigmoid(logits))


def _clipped(logits: Array) -> Array:
    return exact.surprisal(1 - np.clip(exact.sigmoid(logits), CLIP, 1 - CLIP))


def _binary_nll(logits: Tensor) -> Tensor:
    return bernoulli_nll(logits, torch.zeros(len(logits), dtype=torch.long)).nll


def stable_softmax() -> Step:
    """Show that a shift keeps exp from overflowing, and that only log-sum-exp survives its underflow."""
    step = Step(
        title="Shift against overflow, stay in logarithms against underflow",
        formula="-ln pₜ = m + ln Σ exp(zₖ - m) - zₜ,  m = max z",
        about="The NLL of the second class. exp(89) is more than float32 can hold: the plain softmax divides by "
        "infinity. Softmax does not change when all logits move together, so the largest is moved to 0, and nothing "
        "overflows. But a class far behind still has exp(-1000) = 0, in float64 too, and its logarithm is minus "
        "infinity: the shift alone is not enough. The last form, log-sum-exp, takes no logarithm of a probability.",
    )
    names = ("[2, 1, 0]", "[100, 0, -100]", "[1000, 0, -1000]")
    z = torch.tensor([[2.0, 1.0, 0.0], [100.0, 0.0, -100.0], [1000.0, 0.0, -1000.0]])
    ours, truth = _softmax_nll(z), [exact.multiclass_nll([1], [row]) for row in z.tolist()]
    step.column("logits", names)
    step.column("plain, float32", _naive_softmax(z), "digits")
    step.column("shifted, float32", _naive_softmax(_shifted(z)), "digits")
    step.column("shifted, float64", _naive_softmax(_shifted(z.double())), "digits")
    step.column("softmax_nll, float32", ours, "digits")
    step.column("exact", truth, "digits")
    for name, found, expected in zip(names, ours, truth, strict=True):
        step.identity(f"softmax_nll of {name}, in float32", found, expected, 1e-6)
    change = exact.softmax([1002, 1001, 1000]) - exact.softmax([2, 1, 0])
    step.identity("largest change of softmax by adding 1,000", np.abs(change).max(), 0)
    behind = torch.arange(0.0, 200.5, 0.5)
    z = torch.stack([behind, torch.zeros_like(behind)], dim=1)
    shifted, plain = _naive_softmax(_shifted(z)), _naive_softmax(z)
    step.plot("largest logit, that of the class being 0; all in float32", "NLL (nats)")
    step.line("shifted, then ln, until exp underflows", behind[shifted.isfinite()], shifted[shifted.isfinite()])
    step.line("plain, until exp overflows", behind[plain.isfinite()], plain[plain.isfinite()])
    step.dots("softmax_nll", behind[::20], _softmax_nll(z[::20]))
    return step


def _shifted(z: Tensor) -> Tensor:
    return z - z.amax(dim=1, keepdim=True)


def _naive_softmax(z: Tensor) -> Tensor:
    """Return -ln of the second probability."""
    return -torch.log(z.exp() / z.exp().sum(dim=1, keepdim=True))[:, 1]


def _softmax_nll(z: Tensor) -> Tensor:
    return softmax_nll(z, torch.ones(len(z), dtype=torch.long)).nll
