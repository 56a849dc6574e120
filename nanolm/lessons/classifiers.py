"""Classifiers as likelihoods: two classes, many classes, and the gradient that both have."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from nanolm.lessons.step import Curve, Identity, Plot, Step
from nanolm.loss import bernoulli_nll, softmax_nll
from nanolm.loss import reference as exact
from nanolm.loss.reference import Array


def binary_cross_entropy() -> Step:
    """The NLL of a Bernoulli variable is binary cross-entropy, and a softmax over the logits 0 and z."""
    labels, logits = np.array([1, 0, 1, 1, 0]), np.array([2.0, -1.0, 0.5, -0.3, 1.2])
    z, y = torch.from_numpy(logits), torch.from_numpy(labels)
    pairs = torch.stack([torch.zeros_like(z), z], dim=1)
    ours = float(bernoulli_nll(z, y, reduction="mean").objective)
    by = {
        "from probabilities, by the formula": exact.binary_nll_from_probs(labels, exact.sigmoid(logits), eps=0.0),
        "from logits, nanolm.loss.bernoulli_nll": ours,
        "softmax_nll of the logits [0, z]": float(softmax_nll(pairs, y, reduction="mean").objective),
        "torch's binary_cross_entropy_with_logits": float(F.binary_cross_entropy_with_logits(z, y.double())),
    }
    grid = np.linspace(-6, 6, 121)
    return Step(
        title="Binary cross-entropy is the NLL of a coin",
        formula="-ln p(y) = -y ln ŷ - (1-y) ln(1-ŷ),  ŷ = σ(z)",
        about="Not like a likelihood: the very same number. p(y) = ŷ^y (1-ŷ)^(1-y) is a coin whose bias ŷ depends on "
        "the input, and minus its logarithm is binary cross-entropy. Two classes are also a softmax of which one "
        "logit is held at 0. Five examples, four ways:",
        table=(("computed by", "NLL per example"), *((name, f"{value:.12f}") for name, value in by.items())),
        identities=tuple(
            Identity(f"bernoulli_nll = {name}", ours, value) for name, value in by.items() if value is not ours
        ),
        plot=Plot(
            "logit z",
            "NLL (nats)",
            tuple(
                Curve(
                    f"y = {label}",
                    grid.tolist(),
                    bernoulli_nll(
                        torch.from_numpy(grid), torch.full((len(grid),), label), reduction="none"
                    ).nll.tolist(),
                )
                for label in (1, 0)
            ),
        ),
    )


def softmax_scores() -> Step:
    """The NLL of a softmax straight from its logits, and what moves it."""
    cases = {
        "[2, 1, 0]": (2.0, 1.0, 0.0),
        "[2, 2, 0], its own logit raised": (2.0, 2.0, 0.0),
        "[3, 1, 0], a rival's raised": (3.0, 1.0, 0.0),
        "[102, 101, 100], all raised": (102.0, 101.0, 100.0),
    }
    nll = {
        name: float(softmax_nll(torch.tensor([logits], dtype=torch.float64), torch.tensor([1])).nll)
        for name, logits in cases.items()
    }
    base = np.array(cases["[2, 1, 0]"])
    quotient = float(np.exp(base[1]) / np.exp(base).sum())
    grid = np.linspace(-6, 6, 121)
    return Step(
        title="Many classes: scores become probabilities",
        formula="pₖ = exp(zₖ) / Σ exp(zⱼ),  -ln pₜ = ln Σ exp(zⱼ) - zₜ",
        about="The NLL of the second of three classes. Its own logit lowers it, each rival's raises it, and all of "
        "them together change nothing: a class is not asked to have a large score, but a larger one than its rivals. "
        "There is always something to gain from a wider gap.",
        table=(
            ("logits", "probabilities", "NLL of the second"),
            *(
                (name, "[" + ", ".join(f"{p:.3f}" for p in exact.softmax(logits)) + "]", f"{nll[name]:.6f}")
                for name, logits in cases.items()
            ),
        ),
        identities=(
            Identity("ln Σ exp(z) - z₂ = -ln of the quotient", nll["[2, 1, 0]"], -float(np.log(quotient))),
            Identity("the probabilities sum to 1", float(exact.softmax(base).sum()), 1.0),
            Identity("all logits raised by 100: the same NLL", nll["[102, 101, 100], all raised"], nll["[2, 1, 0]"]),
        ),
        plot=Plot(
            "the logit that is moved",
            "NLL of the second class (nats)",
            (
                Curve(
                    "its own, beside [2, ·, 0]", grid.tolist(), [exact.multiclass_nll([1], [[2, x, 0]]) for x in grid]
                ),
                Curve(
                    "a rival's, beside [·, 1, 0]", grid.tolist(), [exact.multiclass_nll([1], [[x, 1, 0]]) for x in grid]
                ),
            ),
        ),
    )


def logistic_regression() -> Step:
    """A classifier fitted by hand from its likelihood; nanolm.loss finds the same gradient and the same rest."""
    x = np.array([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
    y = np.array([0, 0, 1, 0, 1, 0, 1, 1])
    features = np.stack([x, np.ones_like(x)], axis=1)
    first_gradient = features.T @ (0.5 - y) / len(y)
    weights = fit_logistic(features, y)
    at_start = _linear_gradient(x, y, 0.0, 0.0)
    at_rest = _linear_gradient(x, y, *weights.tolist())
    predicted = exact.sigmoid(features @ weights)
    num_right = int(((predicted >= 0.5) == y).sum())
    grid = np.linspace(-3, 3, 121)
    return Step(
        title="A classifier learns from ŷ - y",
        formula="∂NLL/∂z = ŷ - y,  so ∂NLL/∂w = Xᵀ(ŷ - y)/n",
        about=f"Logistic regression on eight points, in NumPy, by the gradient above: ŷ = σ({weights[0]:.4f} x "
        f"{weights[1]:+.4f}) after 2,000 steps, {num_right} of 8 right at a threshold of 0.5. It comes to rest where "
        "the errors balance. Two points lie on the wrong side, so that it does come to rest.",
        table=(
            ("x", "y", "ŷ", "ŷ - y", "NLL"),
            *(
                (f"{a:g}", str(b), f"{p:.4f}", f"{p - b:+.4f}", f"{exact.binary_nll_from_probs([b], [p]):.4f}")
                for a, b, p in zip(x, y, predicted, strict=True)
            ),
        ),
        identities=(
            Identity("at w = 0, Xᵀ(ŷ - y)/n = the gradient of bernoulli_nll", float(first_gradient[0]), at_start[0]),
            Identity("at rest, bernoulli_nll's gradient in w is 0", at_rest[0], 0.0),
            Identity("at rest, mean ŷ = mean y", float(predicted.mean()), float(y.mean())),
        ),
        plot=Plot(
            "x",
            "probability of class 1",
            (
                Curve("ŷ", grid.tolist(), exact.sigmoid(weights[0] * grid + weights[1]).tolist()),
                Curve("y", x.tolist(), y.tolist(), style="dots"),
            ),
        ),
    )


def fit_logistic(features: Array, y: NDArray[np.int64], rate: float = 1.0, num_steps: int = 2000) -> Array:
    """(F,) weights after gradient descent from 0 on the mean NLL of labels y (N,) given features (N, F)."""
    weights = np.zeros(features.shape[1])
    for _ in range(num_steps):
        weights -= rate * features.T @ (exact.sigmoid(features @ weights) - y) / len(y)
    return weights


def _linear_gradient(x: Array, y: NDArray[np.int64], weight: float, bias: float) -> tuple[float, float]:
    """Gradient in weight and bias of the mean bernoulli_nll of the logits wx + b."""
    w, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (weight, bias))
    objective = bernoulli_nll(w * torch.from_numpy(x) + b, torch.from_numpy(y), reduction="mean").objective
    dw, db = torch.autograd.grad(objective, (w, b))
    return float(dw), float(db)


def softmax_gradient(seed: int) -> Step:
    """The gradient of the NLL in the logits is p - y: by formula, by finite differences, by nanolm.loss."""
    generator = np.random.default_rng(seed)
    logits, target, step = generator.normal(scale=2.0, size=5), 2, 1e-5
    formula = exact.softmax(logits) - np.eye(5)[target]
    numerical = np.array(
        [
            (exact.multiclass_nll([target], [logits + step * e]) - exact.multiclass_nll([target], [logits - step * e]))
            / (2 * step)
            for e in np.eye(5)
        ]
    )
    z = torch.from_numpy(logits)[None].requires_grad_()
    (ours,) = torch.autograd.grad(softmax_nll(z, torch.tensor([target])).objective, z)
    autograd = ours[0].numpy()
    classes = list(range(5))
    return Step(
        title="The gradient is probability less truth",
        formula="∂NLL/∂zₖ = pₖ - yₖ",
        about="Each logit is pushed by its error: the right one up by 1 - p, every other down by its p. It sums to "
        f"0, is never larger than 1, and vanishes only where p is the truth. Random logits (seed {seed}), class "
        f"{target} is right; numerically by central differences.",
        table=(
            ("class", "logit", "p", "y", "p - y", "numerically", "softmax_nll"),
            *(
                (
                    str(k),
                    f"{logits[k]:.4f}",
                    f"{exact.softmax(logits)[k]:.6f}",
                    str(int(k == target)),
                    *(f"{way[k]:+.8f}" for way in (formula, numerical, autograd)),
                )
                for k in classes
            ),
        ),
        identities=(
            Identity("largest |numerical - (p - y)|", float(np.abs(numerical - formula).max()), 0.0, 1e-8),
            Identity("largest |softmax_nll's gradient - (p - y)|", float(np.abs(autograd - formula).max()), 0.0),
            Identity("the gradient sums to 0", float(autograd.sum()), 0.0),
        ),
        plot=Plot(
            "class",
            "∂NLL/∂z",
            (
                Curve("p - y", classes, formula.tolist(), style="bars"),
                Curve("softmax_nll's gradient", classes, autograd.tolist(), style="dots"),
            ),
        ),
    )
