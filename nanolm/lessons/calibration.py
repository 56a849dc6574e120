"""What calibration is: ECE and the entropy gap, one temperature, and where the two metrics disagree."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import CalibrationMeter, fit_temperature_from_logits
from nanolm.lessons.step import Curve, Identity, Plot, Step
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll

NUM_DRAWS, NUM_CLASSES = 20_000, 10
"""the simulated data of the steps on calibration; half of the draws are held back"""
NUM_BINS = 10


def reliability(seed: int) -> Step:
    """ECE, entropy gap and reliability diagram of a model whose logits are twice those of the truth."""
    _, (p, labels) = draw_halves(seed)
    doubled = 2 * p.log()
    q = doubled.softmax(dim=1).numpy()
    confidence, correct = q.max(axis=1), q.argmax(axis=1) == labels.numpy()
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    rows, gaps = [], []
    for number in range(NUM_BINS):
        inside = bins == number
        if inside.any():
            share, mean, right = inside.mean(), confidence[inside].mean(), correct[inside].mean()
            gaps.append(share * abs(right - mean))
            interval = f"{number / NUM_BINS:g} to {(number + 1) / NUM_BINS:g}"
            rows.append((interval, f"{share:.4f}", f"{mean:.4f}", f"{right:.4f}", f"{abs(right - mean):.4f}"))
    meter, of_truth = _meter(doubled, labels), _meter(p.log(), labels)
    metrics, step = meter.metrics(), 1e-5
    mean_entropy = float(np.mean([exact.entropy(row) for row in q]))
    sharper, flatter = (
        float(softmax_nll(doubled * scale, labels, reduction="mean").objective) for scale in (1 + step, 1 - step)
    )
    return Step(
        title="Calibration: are answers given with confidence 0.8 right in 80 % of cases?",
        formula="ECE = Σ n_b/n |accuracy_b - confidence_b|,  entropy gap = NLL - mean entropy",
        about=f"{NUM_DRAWS // 2:,} draws from known probabilities over {NUM_CLASSES} classes, and a model whose logits "
        "are twice those of the truth. Its confidence is the largest of its probabilities. A reliability diagram sorts "
        "the predictions into bins by confidence and compares the mean confidence of each bin with the share of right "
        "answers, the accuracy; a calibrated model lies on the diagonal. The expected calibration error (ECE) is the "
        "mean distance from it. It knows the top class only. The entropy gap asks the whole distribution: the entropy "
        "is the NLL that the model expects of itself, and the gap is what it pays beyond that. It is the derivative of "
        "the NLL in the scale of the logits: above 0, smaller logits (a temperature above 1) lower the NLL; below 0, "
        "larger ones do.",
        table=(("confidence", "share of predictions", "mean confidence", "accuracy", "distance"), *rows),
        identities=(
            Identity(
                f"the mean distance, weighted by share = the meter's ECE in {NUM_BINS} bins",
                float(sum(gaps)),
                meter.ece(NUM_BINS),
                1e-7,
            ),
            Identity(
                "NLL - mean entropy = the entropy gap", metrics["nll"] - mean_entropy, metrics["entropy_gap"], 1e-7
            ),
            Identity(
                "the entropy gap = dNLL/ds of softmax(s z) at s = 1, by central differences",
                metrics["entropy_gap"],
                (sharper - flatter) / (2 * step),
                1e-6,
            ),
        ),
        plot=Plot(
            "mean confidence of a bin",
            "accuracy",
            (
                Curve("calibrated", [0.0, 1.0], [0.0, 1.0]),
                _diagram("the truth", of_truth),
                _diagram("its logits doubled", meter),
            ),
        ),
    )


def held_back_temperature(seed: int) -> Step:
    """Logits twice too large: right as often, and overconfident; a temperature from other draws fixes it."""
    (p_fit, labels_fit), (p, labels) = draw_halves(seed)
    fit = fit_temperature_from_logits(2 * p_fit.log(), labels_fit)
    doubled = 2 * p.log()
    measured = {
        "p, the truth": measure(p.log(), labels),
        "its logits doubled": measure(doubled, labels),
        f"doubled, at T = {fit.temperature:.3f}": measure(doubled / fit.temperature, labels),
    }
    truth, sharp, fixed = measured.values()
    at_fit = softmax_nll(2 * p_fit.log() / fit.temperature, labels_fit, reduction="none")
    held_back = softmax_nll(doubled / fit.temperature, labels, reduction="none")
    assert at_fit.entropy is not None, "a loss from logits has every statistic"
    assert held_back.entropy is not None, "a loss from logits has every statistic"
    gap = held_back.nll - held_back.entropy
    temperatures = np.geomspace(0.8, 5, 25)
    return Step(
        title="Right as often, and overconfident",
        formula="softmax(z / T),  T = arg min NLL on the calibration half, where NLL = entropy",
        about=f"The same model. Its answers and its accuracy are those of the truth; its confidence is not. Accuracy "
        "cannot see it, and a low NLL on training data does not exclude it. One number fixes it: the temperature is "
        f"fitted on {len(labels_fit):,} draws, and every number of the table is measured on {len(labels):,} others, "
        "held back. There NLL and entropy are equal only up to the noise of the draws. One number suffices because "
        "this model was made by one; the last steps have models for which it does not.",
        table=calibration_table(measured),
        identities=(
            Identity("the same accuracy as the truth", sharp["accuracy"], truth["accuracy"]),
            # Over seeds T has a standard deviation of 0.03: four of them, relative to 2.
            Identity("the fitted T is 2, within sampling", fit.temperature, 2.0, 0.06),
            Identity(
                "at T, on the half that it was fitted on, NLL = entropy",
                float(at_fit.nll.mean()),
                float(at_fit.entropy.mean()),
                1e-5,
            ),
            Identity(
                "at T, on the held-back half, NLL = entropy within four standard errors",
                fixed["nll"],
                fixed["entropy"],
                4 * float(gap.std()) / math.sqrt(len(gap)),
            ),
        ),
        plot=Plot(
            "temperature",
            "NLL (nats), held back",
            (
                Curve(
                    "NLL of the doubled logits",
                    temperatures.tolist(),
                    [float(softmax_nll(doubled / t, labels, reduction="mean").objective) for t in temperatures],
                ),
                Curve("at the fitted T", [fit.temperature], [fixed["nll"]], style="dots"),
            ),
            levels=(("NLL of the truth", truth["nll"]),),
        ),
    )


def top_label_and_whole() -> Step:
    """An entropy gap below 0 beside a confidence above the accuracy: T sharpens, and ECE rises."""
    percent = (60, 35, 4, 1)
    p, q = np.array(percent) / 100, np.array([0.65, 0.2, 0.075, 0.075])
    labels = torch.repeat_interleave(torch.arange(len(percent)), torch.tensor(percent))
    logits = torch.from_numpy(np.log(q)).expand(len(labels), len(q))
    fit = fit_temperature_from_logits(logits, labels)
    measured = {
        "p, the truth": measure(torch.from_numpy(np.log(p)).expand(len(labels), len(p)), labels),
        "q": measure(logits, labels),
        f"q at T = {fit.temperature:.3f}": measure(logits / fit.temperature, labels),
    }
    _, plain, sharpened = measured.values()
    scales = np.geomspace(0.7, 1.4, 29)
    by_temperature = [measure(logits / scale, labels) for scale in scales.tolist()]
    return Step(
        title="The whole distribution and its top class can disagree",
        formula="entropy gap = Σ (qₖ - pₖ) ln qₖ,  ECE = |q_max - p_max| where every input is alike",
        about=f"A hundred observations with the frequencies {p.tolist()} and a model that says {q.tolist()} to each. "
        f"Its confidence, {q[0]:g}, is above its accuracy, {p[0]:g}: the top class gets too much. Yet its entropy gap "
        "is below 0 and its best temperature below 1, because the rare classes get far too much, as label smoothing "
        "does it, and sharpening takes it from them. At that T the NLL is lower, and the top class is off by more than "
        "before: ECE rises. So the entropy gap and T speak of the whole distribution, ECE and confidence - accuracy of "
        "the top class alone. Overconfident and underconfident, said of the top class, are not the signs of the gap.",
        table=calibration_table(measured),
        identities=(
            Identity("Σ (qₖ - pₖ) ln qₖ = the entropy gap", float((q - p) @ np.log(q)), plain["entropy_gap"], 1e-7),
            Identity("q_max - p_max = ECE", float(q[0] - p[0]), plain["ece"], 1e-7),
            Identity("at T, NLL = entropy", sharpened["nll"], sharpened["entropy"], 1e-5),
        ),
        plot=Plot(
            "temperature",
            "ECE, entropy gap (nats)",
            (
                Curve("ECE", scales.tolist(), [found["ece"] for found in by_temperature]),
                Curve("entropy gap", scales.tolist(), [found["entropy_gap"] for found in by_temperature]),
                Curve("at the fitted T", [fit.temperature] * 2, [sharpened["ece"], 0.0], style="dots"),
            ),
            levels=(("0", 0.0),),
        ),
    )


Draws = tuple[Tensor, Tensor]


def draw_halves(seed: int) -> tuple[Draws, Draws]:
    """(N, V) true probabilities with one class (N,) drawn from each: a half to fit on, and one that is held back."""
    generator = np.random.default_rng(seed)
    p = torch.from_numpy(generator.dirichlet(np.full(NUM_CLASSES, 0.3), size=NUM_DRAWS)).clamp_min(1e-5)
    p /= p.sum(dim=1, keepdim=True)
    uniform = torch.from_numpy(generator.uniform(size=(NUM_DRAWS, 1)))
    labels = (p.cumsum(dim=1) < uniform).sum(dim=1).clamp(max=NUM_CLASSES - 1)
    half = NUM_DRAWS // 2
    return (p[:half], labels[:half]), (p[half:], labels[half:])


def calibration_table(measured: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], ...]:
    """Header and a row of metrics for each model."""
    names = ("nll", "accuracy", "confidence", "ece", "entropy_gap")
    return (
        ("probabilities", "NLL", "accuracy", "confidence", "ECE", "entropy gap"),
        *((name, *(f"{found[key]:z.4f}" for key in names)) for name, found in measured.items()),
    )


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics of (N, V) logits and (N,) labels."""
    return _meter(logits, labels).metrics()


def _meter(logits: Tensor, labels: Tensor) -> CalibrationMeter:
    return CalibrationMeter().update(softmax_nll(logits, labels, reduction="none"))


def _diagram(label: str, meter: CalibrationMeter) -> Curve:
    found = meter.reliability(NUM_BINS)
    filled = found.count > 0
    return Curve(label, found.confidence[filled].tolist(), found.accuracy[filled].tolist(), style="dots")
