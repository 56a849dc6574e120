"""What maximum likelihood does to confidence."""

import math

import numpy as np
import torch

from nanolm.lessons.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import LossOptions, softmax_nll
from nanolm.loss import reference as exact

CLASSES, RIGHT, EPSILON = 4, 1, 0.1
"""four classes, of which the second is right, and label smoothing 0.1: the setting of the steps on smoothing"""


def overconfidence() -> Step:
    """What confidence earns where it is right, what it costs where it is wrong, and where the two balance."""
    confidences = np.array([0.6, 0.8, 0.95, 0.999])
    right, wrong = exact.surprisal(confidences), exact.surprisal(1 - confidences)
    grid = np.linspace(0.5, 0.999, 200)
    accuracies = (0.6, 0.8, 0.95)

    def expected(accuracy: float, confidence: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
        loss = accuracy * exact.surprisal(confidence) + (1 - accuracy) * exact.surprisal(1 - confidence)
        return [float(value) for value in np.atleast_1d(loss)]

    best = [float(grid[int(np.argmin(expected(a, grid)))]) for a in accuracies]
    return Step(
        title="The price of being sure",
        formula="E[loss] = -a ln c - (1-a) ln(1-c), smallest at c = a",
        about="A binary answer given with confidence c. Right, more confidence saves less and less; wrong, it costs "
        "without bound. For a model that is right with probability a, the best confidence is a: on fresh data the "
        "NLL punishes overconfidence. On training data that it gets right every time, nothing does.",
        table=(
            ("confidence", "loss if right", "loss if wrong", *(f"expected, a = {a:g}" for a in accuracies)),
            *(
                (
                    f"{c:g}",
                    f"{r:.3f}",
                    f"{w:.3f}",
                    *(f"{expected(a, np.array([c]))[0]:.3f}" for a in accuracies),
                )
                for c, r, w in zip(confidences, right, wrong, strict=True)
            ),
        ),
        identities=tuple(
            Identity(f"the best confidence at accuracy {a:g}", c, a, 2.6e-3)  # a step of the grid
            for a, c in zip(accuracies, best, strict=True)
        ),
        plot=Plot(
            "confidence",
            "expected loss (nats)",
            tuple(Curve(f"right with probability {a:g}", grid.tolist(), expected(a, grid)) for a in accuracies),
        ),
    )


def logits_without_end(num_steps: int = 1000, rate: float = 1.0) -> Step:
    """On one-hot targets the logit gap grows like ln(steps) for ever; smoothed targets give it an end."""
    gaps = {epsilon: _logit_gaps(LossOptions(label_smoothing=epsilon), num_steps, rate) for epsilon in (0.0, EPSILON)}
    limit = exact.surprisal(EPSILON / CLASSES) - exact.surprisal(1 - EPSILON + EPSILON / CLASSES)
    counts = [n for n in (1, 10, 100, 1000) if n < num_steps] + [num_steps]
    factor = CLASSES / (CLASSES - 1) * rate
    steps = np.arange(1, num_steps + 1)
    # dg/dt = K/(K-1) η (1-p) with 1-p = (K-1)/(K-1+e^g) integrates to (K-1) g + e^g = 1 + K η t
    constant = 1 + (CLASSES - 1) * factor * num_steps
    last = gaps[0.0][-1]
    return Step(
        title="Maximum likelihood has no end where it is always right",
        formula="(K-1) g + exp(g) = 1 + K·η·t,  so g ≈ ln t",
        about=f"One example of {CLASSES} classes and gradient descent on its logits, one number for the gap g "
        "between the right logit and the others. With a one-hot target the loss falls for ever and the gap grows "
        "with the logarithm of the steps: wherever a model can be right about all of its training data, its weights "
        f"have no reason to stop. With label smoothing {EPSILON:g} it ends at ln {math.exp(limit):.0f} = "
        f"{limit:.3f}; weight decay or stopping early end it too.",
        table=(
            ("steps", "gap, one-hot", "NLL, one-hot", f"gap, smoothed by {EPSILON:g}", "NLL, smoothed"),
            *(
                (
                    f"{n:,}",
                    *(cell for gap in gaps.values() for cell in (f"{gap[n - 1]:.4f}", figure(_nll_of_gap(gap[n - 1])))),
                )
                for n in counts
            ),
        ),
        identities=(
            Identity("the smoothed gap's end = ln(q_right / q_other)", float(gaps[EPSILON][-1]), float(limit), 1e-6),
            Identity(
                f"(K-1) g + exp(g) after {num_steps:,} steps; small steps follow the flow",
                ((CLASSES - 1) * last + math.exp(last)) / constant,
                1.0,
                0.02,
            ),
        ),
        plot=Plot(
            "steps",
            "gap g",
            (
                Curve("one-hot target", steps.tolist(), gaps[0.0].tolist()),
                Curve(f"label smoothing {EPSILON:g}", steps.tolist(), gaps[EPSILON].tolist()),
            ),
            levels=((f"ln {math.exp(limit):.0f}", float(limit)),),
            xlog=True,
        ),
    )


def _logit_gaps(options: LossOptions, num_steps: int, rate: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    logits = torch.zeros(1, CLASSES, dtype=torch.float64, requires_grad=True)
    target, gaps = torch.tensor([RIGHT]), []
    for _ in range(num_steps):
        (gradient,) = torch.autograd.grad(softmax_nll(logits, target, options=options).objective, logits)
        with torch.no_grad():
            logits -= rate * gradient
            gaps.append(float(logits[0, RIGHT] - logits[0, 0]))
    return np.array(gaps)


def _nll_of_gap(gap: float) -> float:
    return math.log1p((CLASSES - 1) * math.exp(-gap))
