"""Label smoothing: the optimum that it asks for, and what that does to calibration."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import fit_temperature_from_logits
from nanolm.calibration.calibrators import invert_smoothing
from nanolm.lessons.calibration import NUM_CLASSES, calibration_table, draw_halves, measure
from nanolm.lessons.confidence import CLASSES, EPSILON, RIGHT
from nanolm.lessons.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import LossOptions, softmax_nll
from nanolm.loss import reference as exact


def smoothing_optimum() -> Step:
    """The distribution that a smoothed target asks for is the smoothed target itself."""
    target = exact.smooth_labels(CLASSES, RIGHT, EPSILON)
    logits = torch.from_numpy(np.log(target))[None].requires_grad_()
    result = softmax_nll(logits, torch.tensor([RIGHT]), options=LossOptions(label_smoothing=EPSILON))
    (gradient,) = torch.autograd.grad(result.objective, logits)
    objective_at_optimum = result.objective.item()
    grid = np.linspace(0.3, 0.999, 200)

    def objective(right: float, epsilon: float) -> float:
        q = np.full(CLASSES, (1 - right) / (CLASSES - 1))
        q[RIGHT] = right
        return exact.cross_entropy(exact.smooth_labels(CLASSES, RIGHT, epsilon), q)

    curves = {epsilon: [objective(float(c), epsilon) for c in grid] for epsilon in (0.0, EPSILON, 0.3)}
    return Step(
        title="Label smoothing asks for a finite confidence",
        formula="q = (1-ε) y + ε/K minimises -Σ qₖ ln pₖ at p = q",
        about=f"{CLASSES} classes, ε = {EPSILON:g}. A one-hot target says that no other class would do; yet a "
        "sentence often goes on in several good ways, of which the corpus shows one. The smoothed target is "
        f"{target.round(4).tolist()}, and so is its optimum: confidence {target[RIGHT]:.3f} and no more, for an "
        "objective of H(q) > 0. Labels are a choice: a teacher's probabilities (distillation) are another. The NLL, "
        "which is not smoothed, is what nanolm logs.",
        table=(
            ("at the optimum", "value"),
            ("probabilities", str(target.round(4).tolist())),
            ("objective", f"{objective_at_optimum:.6f}"),
            ("NLL", f"{float(result.nll):.6f}"),
            ("largest gradient", figure(float(gradient.abs().max()))),
        ),
        identities=(
            Identity("the objective at p = q is H(q)", objective_at_optimum, exact.entropy(target)),
            Identity("the gradient at p = q", float(gradient.abs().max()), 0.0),
        ),
        plot=Plot(
            "probability of the right class",
            "objective (nats)",
            tuple(Curve(f"ε = {epsilon:g}", grid.tolist(), curve) for epsilon, curve in curves.items()),
        ),
    )


def smoothing_and_calibration(seed: int) -> Step:
    """A calibrated p, smoothed, is underconfident by ε(E p_max - 1/V); temperature fixes some, the inverse map all."""
    (p_fit, labels_fit), (p, labels) = draw_halves(seed)
    q = _smoothed(p, EPSILON)
    temperature = fit_temperature_from_logits(_smoothed(p_fit, EPSILON).log(), labels_fit).temperature
    restored, _ = invert_smoothing(q.log(), EPSILON)
    measured = {
        "p, the truth": measure(p.log(), labels),
        f"q, smoothed by {EPSILON:g}": measure(q.log(), labels),
        f"q at T = {temperature:.3f}": measure(q.log() / temperature, labels),
        "q, the smoothing inverted": measure(restored, labels),
    }
    truth, smoothed, _, inverted = measured.values()
    largest = float(p.amax(dim=1).mean())
    predicted = EPSILON * (largest - 1 / NUM_CLASSES)
    standard_error = math.sqrt(truth["accuracy"] * (1 - truth["accuracy"]) / len(labels))
    epsilons = np.linspace(0, 0.3, 7)
    return Step(
        title="A model that smoothing has made underconfident",
        formula="q = (1-ε) p + ε/V,  ECE ≈ ε (E p_max - 1/V),  p = (q - ε/V) / (1-ε)",
        about="The draws of the steps on calibration, and a model at the optimum of smoothed labels: it says q. Its "
        f"confidence is below its accuracy, by {predicted:.4f} in expectation. The temperature, fitted on the other "
        f"half of the draws, is {temperature:.3f}: sharper predictions have a lower NLL. The inverse map restores p. "
        "The ECE of the truth itself is what this many draws leave. Smoothing changes what is asked for; calibration "
        "has to be measured either way.",
        table=calibration_table(measured),
        identities=(
            Identity("confidence lost = ε (E p_max - 1/V)", largest - smoothed["confidence"], predicted, 1e-7),
            Identity(
                "ECE = ε (E p_max - 1/V), within four standard errors of the accuracy",
                smoothed["ece"],
                predicted,
                4 * standard_error,
            ),
            Identity("the inverse map's NLL = the NLL of the truth", inverted["nll"], truth["nll"], 1e-6),
        ),
        plot=Plot(
            "label smoothing ε",
            "ECE",
            (
                Curve("ε (E p_max - 1/V)", epsilons.tolist(), (epsilons / EPSILON * predicted).tolist()),
                Curve(
                    "measured",
                    epsilons.tolist(),
                    [measure(_smoothed(p, epsilon).log(), labels)["ece"] for epsilon in epsilons.tolist()],
                    style="dots",
                ),
            ),
        ),
    )


def _smoothed(p: Tensor, epsilon: float) -> Tensor:
    return (1 - epsilon) * p + epsilon / NUM_CLASSES
