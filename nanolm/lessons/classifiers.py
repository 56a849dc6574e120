"""Classifiers as likelihoods: two classes, many classes, and the gradient that both have."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from nanolm.lessons.logistic import LogisticRegressionNLL, LogisticRegressionTorch
from nanolm.lessons.step import Step
from nanolm.loss import bernoulli_nll, softmax_nll
from nanolm.loss import reference as exact

LOGITS = np.linspace(-6, 6, 121)


def binary_cross_entropy() -> Step:
    """Compute binary cross-entropy as the NLL of a coin, by its formula, as a softmax, and by torch."""
    step = Step(
        title="Binary cross-entropy is the NLL of a coin",
        formula="-ln p(y) = -y ln ŷ - (1-y) ln(1-ŷ),  ŷ = σ(z)",
        about="p(y) = ŷ^y (1-ŷ)^(1-y) is a coin whose bias ŷ depends on the input, and minus its logarithm is binary "
        "cross-entropy. Two classes are also a softmax of which one logit is held at 0. Five examples, four ways:",
    )
    labels, logits = np.array([1, 0, 1, 1, 0]), np.array([2.0, -1.0, 0.5, -0.3, 1.2])
    y, z = torch.from_numpy(labels), torch.from_numpy(logits)
    ours = bernoulli_nll(z, y, reduction="mean").objective.item()
    pairs = torch.stack([torch.zeros_like(z), z], dim=1)
    others = {
        "from probabilities, by the formula": exact.binary_nll_from_probs(labels, exact.sigmoid(logits), eps=0.0),
        "softmax_nll of the logits [0, z]": softmax_nll(pairs, y, reduction="mean").objective.item(),
        "torch's binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits(z, y.double()).item(),
    }
    step.column("computed by", ["from logits, nanolm.loss.bernoulli_nll", *others])
    step.column("NLL per example", [ours, *others.values()], ".12f")
    for name, value in others.items():
        step.identity(f"bernoulli_nll = {name}", ours, value)
    step.plot("logit z", "NLL (nats)")
    for label in (1, 0):
        step.line(f"y = {label}", LOGITS, [exact.binary_nll_from_logits([label], [z]) for z in LOGITS])
    return step


def logistic_regression() -> Step:
    """Fit a classifier by the gradient of its likelihood, and compare it with autograd through bernoulli_nll."""
    x = np.array([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0])
    X, y = x[:, None], np.array([0, 0, 1, 0, 1, 0, 1, 1])
    by_formula, by_autograd = LogisticRegressionNLL(1), LogisticRegressionTorch(1)
    (at_start, _), (at_start_by_autograd, _) = by_formula.gradient(X, y), by_autograd.gradient(X, y)
    by_formula.fit(X, y, lr=1.0, epochs=2000)
    slope, intercept = by_formula.weights[0], by_formula.bias
    predicted, num_right = by_formula.predict_proba(X), (by_formula.predict(X) == y).sum()
    step = Step(
        title="A classifier learns from ŷ - y",
        formula="∂NLL/∂z = ŷ - y,  so ∂NLL/∂w = Xᵀ(ŷ - y)/n",
        about="Logistic regression on eight points, in NumPy, by the gradient above: "
        f"ŷ = σ({slope:.4f} x {intercept:+.4f}) after 2,000 steps, {num_right} of 8 right at a threshold of 0.5. Two "
        "points lie on the wrong side, so that it comes to rest, where the errors balance.",
    )
    step.column("x", x, "g")
    step.column("y", y)
    step.column("ŷ", predicted, ".4f")
    step.column("ŷ - y", predicted - y, "+.4f")
    step.column("NLL", exact.surprisal(np.where(y == 1, predicted, 1 - predicted)), ".4f")
    step.identity("at w = 0, Xᵀ(ŷ - y)/n = the gradient of bernoulli_nll", at_start[0], at_start_by_autograd[0])
    by_autograd.weights, by_autograd.bias = by_formula.weights, by_formula.bias
    step.identity("at rest, bernoulli_nll's gradient in w is 0", by_autograd.gradient(X, y)[0][0], 0)
    step.identity("at rest, mean ŷ = mean y", predicted.mean(), y.mean())
    grid = np.linspace(-3, 3, 121)
    step.plot("x", "probability of class 1")
    step.line("ŷ", grid, by_formula.predict_proba(grid[:, None]))
    step.dots("y", x, y)
    return step


def one_optimum() -> Step:
    """Fit one logistic regression by gradient descent in NumPy and torch, and by scikit-learn's solver."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    step = Step(
        title="One optimum, found three ways",
        formula="NLL(w, b) + l2/2 |w|² is convex: where it has a minimum, it has no other",
        about=f"Logistic regression on the {len(y)} examples of scikit-learn's breast cancer data, standardised: "
        "3,000 steps of gradient descent by the formula in NumPy, as many by bernoulli_nll and autograd in torch, and "
        "scikit-learn's own solver. Two features overlap in class and have an optimum without a penalty. All of them "
        "separate the classes: without a penalty the weights would grow for ever, and an L2 penalty holds them. The "
        "last column is the largest difference of a weight or the bias from scikit-learn's.",
    )
    rows = []
    for problem, features, l2 in (("2 features, no penalty", X[:, :2], 0.0), ("30 features, l2 = 0.05", X, 0.05)):
        theirs = LogisticRegression(C=1 / (len(y) * l2) if l2 else np.inf, tol=1e-10, max_iter=10_000).fit(features, y)
        optimum = LogisticRegressionNLL(features.shape[1])
        optimum.weights, optimum.bias = theirs.coef_[0], float(theirs.intercept_[0])
        rate = 1 / (float(np.linalg.norm(features, 2)) ** 2 / len(y) / 4 + l2)  # 1 / the largest curvature
        in_numpy = LogisticRegressionNLL(features.shape[1]).fit(features, y, rate, 3000, l2)
        in_torch = LogisticRegressionTorch(features.shape[1]).fit(features, y, rate, 3000, l2)
        for by, model in (("NumPy", in_numpy), ("torch", in_torch), ("scikit-learn", optimum)):
            distance = max(np.abs(model.weights - optimum.weights).max(), abs(model.bias - optimum.bias))
            rows.append((problem, by, model, model.nll(features, y), distance))
            if model is not optimum:
                step.identity(f"{problem}: largest difference of {by} from scikit-learn", distance, 0, 1e-5)
    problems, ways, models, nll, distances = zip(*rows, strict=True)
    step.column("problem", problems)
    step.column("by", ways, "words")
    step.column("NLL", nll, ".8f")
    step.column("norm of weights", [np.linalg.norm(model.weights) for model in models], ".6f")
    step.column("bias", [model.bias for model in models], ".6f")
    step.column("distance", distances, ".1e")
    step.plot("feature", "weight, penalised")
    step.bars("scikit-learn", range(30), optimum.weights)
    step.dots("NumPy", range(30), in_numpy.weights)
    return step


def softmax_scores() -> Step:
    """Compute the NLL of a softmax straight from its logits, and show what moves it."""
    step = Step(
        title="Many classes: scores become probabilities",
        formula="pₖ = exp(zₖ) / Σ exp(zⱼ),  -ln pₜ = ln Σ exp(zⱼ) - zₜ",
        about="The NLL of the second of three classes. Its own logit lowers it, each rival's raises it, and all of "
        "them together change nothing: only the gap to the rivals counts, and a wider one always pays.",
    )
    cases = {
        "[2, 1, 0]": [2.0, 1.0, 0.0],
        "[2, 2, 0], its own logit raised": [2.0, 2.0, 0.0],
        "[3, 1, 0], a rival's raised": [3.0, 1.0, 0.0],
        "[102, 101, 100], all raised": [102.0, 101.0, 100.0],
    }
    z = torch.tensor(list(cases.values()), dtype=torch.float64)
    p, nll = exact.softmax(z), softmax_nll(z, torch.ones(len(z), dtype=torch.long)).nll.tolist()
    step.column("logits", cases)
    step.column("probabilities", ["[" + ", ".join(f"{p:.3f}" for p in row) + "]" for row in p], "words")
    step.column("NLL of the second", nll, ".6f")
    exponentials = np.exp(cases["[2, 1, 0]"])
    quotient = exponentials[1] / exponentials.sum()
    step.identity("ln Σ exp(z) - z₂ = -ln of the quotient", nll[0], -np.log(quotient))
    step.identity("the probabilities sum to 1", p[0].sum(), 1)
    step.identity("all logits raised by 100: the same NLL", nll[3], nll[0])
    step.plot("the logit that is moved", "NLL of the second class (nats)")
    step.line("its own, in [2, ·, 0]", LOGITS, [exact.multiclass_nll([1], [[2, z, 0]]) for z in LOGITS])
    step.line("a rival's, in [·, 1, 0]", LOGITS, [exact.multiclass_nll([1], [[z, 1, 0]]) for z in LOGITS])
    return step


def softmax_gradient(seed: int) -> Step:
    """Compute the gradient in the logits as p - y, by finite differences, and by nanolm.loss."""
    step = Step(
        title="The gradient is probability less truth",
        formula="∂NLL/∂zₖ = pₖ - yₖ",
        about="Each logit is pushed by its error: the right one up by 1 - p, every other down by its p. The errors sum "
        f"to 0. Random logits (seed {seed}), class 2 is right; numerically by central differences.",
    )
    logits, classes, h = np.random.default_rng(seed).normal(scale=2.0, size=5), range(5), 1e-5
    p, y = exact.softmax(logits), np.eye(5)[2]
    above, below = ([exact.multiclass_nll([2], [z]) for z in logits + d * np.eye(5)] for d in (h, -h))
    numerical = (np.array(above) - below) / (2 * h)
    z = torch.from_numpy(logits)[None].requires_grad_()
    autograd = torch.autograd.grad(softmax_nll(z, torch.tensor([2])).objective, z)[0][0].numpy()
    step.column("class", classes)
    step.column("logit", logits, ".4f")
    step.column("p", p, ".6f")
    step.column("y", y, ".0f")
    step.column("p - y", p - y, "+.8f")
    step.column("numerically", numerical, "+.8f")
    step.column("softmax_nll", autograd, "+.8f")
    step.identity("largest |numerical - (p - y)|", np.abs(numerical - (p - y)).max(), 0, 1e-8)
    step.identity("largest |softmax_nll's gradient - (p - y)|", np.abs(autograd - (p - y)).max(), 0)
    step.identity("the gradient sums to 0", autograd.sum(), 0)
    step.plot("class", "∂NLL/∂z")
    step.bars("p - y", classes, p - y)
    step.dots("softmax_nll's gradient", classes, autograd)
    return step
