"""Label smoothing: the optimum that it asks for, and what that does to calibration."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import CalibrationMeter, fit_temperature_from_logits
from nanolm.calibration.calibrators import invert_smoothing
from nanolm.first_principles.confidence import CLASSES, EPSILON, RIGHT
from nanolm.first_principles.step import Curve, Identity, Plot, Step, figure
from nanolm.loss import LossOptions, softmax_nll
from nanolm.loss import reference as exact

NUM_DRAWS, NUM_CLASSES = 20_000, 10
"""the simulated data of the last two steps"""


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


def too_sure(seed: int) -> Step:
    """Logits twice too large: right as often, and too sure; one temperature mends it."""
    p, labels = _draws(seed)
    doubled = 2 * p.log()
    fit = fit_temperature_from_logits(doubled, labels)
    measured = {
        "p, the truth": _measure(p.log(), labels),
        "its logits doubled": _measure(doubled, labels),
        f"doubled, at the fitted T = {fit.temperature:.3f}": _measure(doubled / fit.temperature, labels),
    }
    truth, sharp, mended = measured.values()
    temperatures = np.geomspace(0.8, 5, 25)
    return Step(
        title="Right as often, and too sure",
        formula="softmax(z / T),  T = arg min NLL,  where NLL = entropy",
        about=f"{NUM_DRAWS:,} draws from known probabilities over {NUM_CLASSES} classes, and a model whose logits "
        "are twice those of the truth. Its answers and its accuracy are those of the truth; its confidence is not. "
        "Accuracy cannot see it, a low NLL on training data does not exclude it. One number, fitted on data held "
        "back, mends it.",
        table=_calibration_table(measured),
        identities=(
            Identity("the same accuracy as the truth", sharp["accuracy"], truth["accuracy"]),
            Identity("the fitted T is 2, within sampling", fit.temperature, 2.0, 0.03),
            Identity("at the fitted T, NLL = entropy", mended["nll"], mended["entropy"], 1e-5),
        ),
        plot=Plot(
            "temperature",
            "NLL (nats)",
            (
                Curve(
                    "NLL of the doubled logits",
                    temperatures.tolist(),
                    [float(softmax_nll(doubled / t, labels, reduction="mean").objective) for t in temperatures],
                ),
                Curve("at the fitted T", [fit.temperature], [fit.nll_at_temperature], style="dots"),
            ),
            levels=(("NLL of the truth", truth["nll"]),),
        ),
    )


def smoothing_and_calibration(seed: int) -> Step:
    """A calibrated p, smoothed, is underconfident by ε(E p_max - 1/V); temperature mends some, the inverse map all."""
    p, labels = _draws(seed)
    q = _smoothed(p, EPSILON)
    temperature = fit_temperature_from_logits(q.log(), labels).temperature
    restored, _ = invert_smoothing(q.log(), EPSILON)
    measured = {
        "p, the truth": _measure(p.log(), labels),
        f"q, smoothed by {EPSILON:g}": _measure(q.log(), labels),
        f"q at the fitted T = {temperature:.3f}": _measure(q.log() / temperature, labels),
        "q, the smoothing inverted": _measure(restored, labels),
    }
    truth, smoothed, tempered, inverted = measured.values()
    largest = float(p.amax(dim=1).mean())
    predicted = EPSILON * (largest - 1 / NUM_CLASSES)
    standard_error = math.sqrt(truth["accuracy"] * (1 - truth["accuracy"]) / NUM_DRAWS)
    epsilons = np.linspace(0, 0.3, 7)
    return Step(
        title="A model that smoothing has made too modest",
        formula="q = (1-ε) p + ε/V,  ECE ≈ ε (E p_max - 1/V),  p = (q - ε/V) / (1-ε)",
        about="The same draws, and a model at the optimum of smoothed labels: it says q. Its confidence falls short "
        f"by {predicted:.4f}, its fitted T is below 1, and the inverse map restores p. The ECE of the truth itself "
        "is what this many draws leave. Smoothing changes what is asked for; calibration has to be measured either "
        "way.",
        table=_calibration_table(measured),
        identities=(
            Identity("confidence lost = ε (E p_max - 1/V)", largest - smoothed["confidence"], predicted, 1e-7),
            Identity(
                "ECE = ε (E p_max - 1/V), within four standard errors of the accuracy",
                smoothed["ece"],
                predicted,
                4 * standard_error,
            ),
            Identity("at the fitted T, NLL = entropy", tempered["nll"], tempered["entropy"], 1e-5),
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
                    [_measure(_smoothed(p, epsilon).log(), labels)["ece"] for epsilon in epsilons.tolist()],
                    style="dots",
                ),
            ),
        ),
    )


def _draws(seed: int) -> tuple[Tensor, Tensor]:
    """(N, V) true probabilities, and one class (N,) drawn from each."""
    generator = np.random.default_rng(seed)
    p = torch.from_numpy(generator.dirichlet(np.full(NUM_CLASSES, 0.3), size=NUM_DRAWS)).clamp_min(1e-5)
    p /= p.sum(dim=1, keepdim=True)
    uniform = torch.from_numpy(generator.uniform(size=(NUM_DRAWS, 1)))
    return p, (p.cumsum(dim=1) < uniform).sum(dim=1).clamp(max=NUM_CLASSES - 1)


def _smoothed(p: Tensor, epsilon: float) -> Tensor:
    return (1 - epsilon) * p + epsilon / NUM_CLASSES


def _calibration_table(measured: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], ...]:
    names = ("nll", "accuracy", "confidence", "ece", "entropy_gap")
    return (
        ("probabilities", "NLL", "accuracy", "confidence", "ECE", "entropy gap"),
        *((name, *(f"{found[key]:z.4f}" for key in names)) for name, found in measured.items()),
    )


def _measure(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    return CalibrationMeter().update(softmax_nll(log_probabilities, labels, reduction="none")).metrics()
