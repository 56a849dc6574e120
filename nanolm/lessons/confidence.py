"""The effect of maximum likelihood on confidence, and what label smoothing asks for instead."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import fit_temperature_from_logits
from nanolm.calibration.calibrators import invert_smoothing
from nanolm.lessons.calibration import NUM_CLASSES, draw_halves, measure, metric_columns
from nanolm.lessons.step import Step, significant
from nanolm.loss import LossOptions, softmax_nll
from nanolm.loss import reference as exact
from nanolm.loss.reference import Array

CLASSES, RIGHT, EPSILON = 4, 1, 0.1
"""four classes, of which the second is right, and label smoothing 0.1"""


def overconfidence() -> Step:
    """Compare what confidence earns where it is right with what it costs where it is wrong."""
    step = Step(
        title="The price of being sure",
        formula="E[loss] = -a ln c - (1-a) ln(1-c), smallest at c = a",
        about="A binary answer given with confidence c. Right, more confidence saves less and less; wrong, it costs "
        "without bound. For a model that is right with probability a, the best confidence is a: on fresh data the "
        "NLL punishes overconfidence. On training data that it gets right every time, nothing does.",
    )
    confidences, grid = np.array([0.6, 0.8, 0.95, 0.999]), np.linspace(0.5, 0.999, 200)
    step.column("confidence", confidences)
    step.column("loss if right", exact.surprisal(confidences), ".3f")
    step.column("loss if wrong", exact.surprisal(1 - confidences), ".3f")
    step.plot("confidence", "expected loss (nats)")
    for a in (0.6, 0.8, 0.95):
        expected, along = (a * exact.surprisal(c) + (1 - a) * exact.surprisal(1 - c) for c in (confidences, grid))
        step.column(f"expected, a = {a:g}", expected, ".3f")
        step.identity(f"the best confidence at accuracy {a:g}", grid[along.argmin()], a, 2.6e-3)  # a step of the grid
        step.line(f"right with probability {a:g}", grid, along)
    return step


def logits_without_end() -> Step:
    """Show that the gap of the logits grows like ln(steps) on one-hot targets, and ends on smoothed ones."""
    q = exact.smooth_labels(CLASSES, RIGHT, EPSILON)
    limit = float(np.log(q[RIGHT] / q[0]))
    step = Step(
        title="Maximum likelihood has no end where it is always right",
        formula="(K-1) g + exp(g) = 1 + K·η·t,  so g ≈ ln t",
        about=f"One example of {CLASSES} classes and gradient descent on its logits; g is the gap between the right "
        "logit and the others. With a one-hot target the loss falls for ever and the gap grows with the logarithm of "
        "the steps: where a model can be right about all of its training data, its weights have no reason to stop. "
        f"Label smoothing {EPSILON:g} ends it at ln {math.exp(limit):.0f} = {limit:.3f}; so do weight decay and early "
        "stopping.",
    )
    steps, rows = np.arange(1, 1001), [0, 9, 99, 999]
    one_hot, smoothed = (_gaps(LossOptions(label_smoothing=epsilon), len(steps)) for epsilon in (0.0, EPSILON))
    nll_one_hot, nll_smoothed = (np.log1p((CLASSES - 1) * np.exp(-gaps)) for gaps in (one_hot, smoothed))
    step.column("steps", steps[rows], ",")
    step.column("gap, one-hot", one_hot[rows], ".4f")
    step.column("NLL, one-hot", nll_one_hot[rows], "digits")
    step.column(f"gap, smoothed by {EPSILON:g}", smoothed[rows], ".4f")
    step.column("NLL, smoothed", nll_smoothed[rows], "digits")
    step.identity("the smoothed gap's end = ln(q_right / q_other)", smoothed[-1], limit, 1e-6)
    # dg/dt = K/(K-1) η (1-p) with 1-p = (K-1)/(K-1+e^g) integrates to (K-1) g + e^g = 1 + K η t; here η = 1.
    share = ((CLASSES - 1) * one_hot[-1] + math.exp(one_hot[-1])) / (1 + CLASSES * len(steps))
    step.identity("(K-1) g + exp(g) after 1,000 steps; small steps follow the flow", share, 1, 0.02)
    step.plot("steps", "gap g", xscale="log")
    step.line("one-hot target", steps, one_hot)
    step.line(f"label smoothing {EPSILON:g}", steps, smoothed)
    step.level(f"ln {math.exp(limit):.0f}", limit)
    return step


def _gaps(options: LossOptions, num_steps: int) -> Array:
    """Return the right logit minus another after each step of gradient descent at a rate of 1, from logits of 0."""
    logits, gaps = torch.zeros(1, CLASSES, dtype=torch.float64), []
    for _ in range(num_steps):
        logits.requires_grad_()
        objective = softmax_nll(logits, torch.tensor([RIGHT]), options=options).objective
        logits = (logits - torch.autograd.grad(objective, logits)[0]).detach()
        gaps.append(float(logits[0, RIGHT] - logits[0, 0]))
    return np.array(gaps)


def smoothing_optimum() -> Step:
    """Show that a smoothed target is its own optimum."""
    target = exact.smooth_labels(CLASSES, RIGHT, EPSILON)
    probabilities = str(target.round(4).tolist())
    step = Step(
        title="Label smoothing asks for a finite confidence",
        formula="q = (1-ε) y + ε/K minimises -Σ qₖ ln pₖ at p = q",
        about=f"{CLASSES} classes, ε = {EPSILON:g}. A one-hot target says that no other class would do; yet a "
        "sentence often goes on in several good ways, of which the corpus shows one. The smoothed target is "
        f"{probabilities}, and so is its optimum: confidence {target[RIGHT]:.3f} and no more, for an objective of "
        "H(q) > 0. Labels are a choice: a teacher's probabilities (distillation) are another. The NLL, which is not "
        "smoothed, is what nanolm logs.",
    )
    logits = torch.from_numpy(np.log(target))[None].requires_grad_()
    result = softmax_nll(logits, torch.tensor([RIGHT]), options=LossOptions(label_smoothing=EPSILON))
    objective, nll = result.objective.item(), result.nll.item()
    gradient = torch.autograd.grad(result.objective, logits)[0].abs().max().item()
    step.column("at the optimum", ["probabilities", "objective", "NLL", "largest gradient"])
    step.column("value", [probabilities, f"{objective:.6f}", f"{nll:.6f}", significant(gradient)])
    step.identity("the objective at p = q is H(q)", objective, exact.entropy(target))
    step.identity("the gradient at p = q", gradient, 0)
    step.plot("probability of the right class", "objective (nats)")
    grid, others = np.linspace(0.3, 0.999, 200), np.arange(CLASSES) != RIGHT
    for epsilon in (0.0, EPSILON, 0.3):
        labels = exact.smooth_labels(CLASSES, RIGHT, epsilon)
        spread = [np.where(others, (1 - c) / (CLASSES - 1), c) for c in grid]
        step.line(f"ε = {epsilon:g}", grid, [exact.cross_entropy(labels, p) for p in spread])
    return step


def smoothing_and_calibration(seed: int) -> Step:
    """Smooth a calibrated p, which makes it underconfident, and undo that by temperature and by the inverse map."""
    (p_fit, labels_fit), (p, labels) = draw_halves(seed)
    q = _ln_smoothed(p, EPSILON)
    temperature = fit_temperature_from_logits(_ln_smoothed(p_fit, EPSILON), labels_fit).temperature
    expected_confidence = p.amax(dim=1).mean().item()
    lost = EPSILON * (expected_confidence - 1 / NUM_CLASSES)
    step = Step(
        title="A model that smoothing has made underconfident",
        formula="q = (1-ε) p + ε/V,  ECE ≈ ε (E p_max - 1/V),  p = (q - ε/V) / (1-ε)",
        about="The draws of the steps on calibration, and a model at the optimum of smoothed labels: it says q. Its "
        f"confidence is below its accuracy, by {lost:.4f} in expectation. The temperature, fitted on the other half "
        f"of the draws, is {temperature:.3f}: sharper predictions have a lower NLL. The inverse map restores p, whose "
        "ECE is what this many draws leave. Calibration has to be measured either way.",
    )
    truth, smoothed, scaled = measure(p.log(), labels), measure(q, labels), measure(q / temperature, labels)
    inverted = measure(invert_smoothing(q, EPSILON)[0], labels)
    names = ("p, the truth", f"q, smoothed by {EPSILON:g}", f"q at T = {temperature:.3f}", "q, the smoothing inverted")
    metric_columns(step, dict(zip(names, (truth, smoothed, scaled, inverted), strict=True)))
    step.identity("confidence lost = ε (E p_max - 1/V)", expected_confidence - smoothed["confidence"], lost, 1e-7)
    noise = 4 * math.sqrt(truth["accuracy"] * (1 - truth["accuracy"]) / len(labels))
    step.identity("ECE = ε (E p_max - 1/V), within four standard errors of the accuracy", smoothed["ece"], lost, noise)
    step.identity("the inverse map's NLL = the NLL of the truth", inverted["nll"], truth["nll"], 1e-6)
    epsilons = np.linspace(0, 0.3, 7)
    step.plot("label smoothing ε", "ECE")
    step.line("ε (E p_max - 1/V)", epsilons, epsilons / EPSILON * lost)
    step.dots("measured", epsilons, [measure(_ln_smoothed(p, e), labels)["ece"] for e in epsilons.tolist()])
    return step


def _ln_smoothed(p: Tensor, epsilon: float) -> Tensor:
    return ((1 - epsilon) * p + epsilon / NUM_CLASSES).log()
