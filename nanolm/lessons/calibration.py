"""Calibration: ECE and the entropy gap, one temperature, and where the two metrics disagree."""

import math

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration import CalibrationMeter, fit_temperature_from_logits
from nanolm.lessons.step import Step
from nanolm.loss import reference as exact
from nanolm.loss import softmax_nll
from nanolm.loss.reference import Array

NUM_DRAWS, NUM_CLASSES, NUM_BINS = 20_000, 10, 10
"""the simulated data of the steps on calibration, of which half is held out"""

Draws = tuple[Tensor, Tensor]


def reliability(seed: int) -> Step:
    """Measure ECE, entropy gap and reliability of a model whose logits are twice those of the truth."""
    step = Step(
        title="Calibration: are answers given with confidence 0.8 right in 80 % of cases?",
        formula="ECE = Σ n_b/n |accuracy_b - confidence_b|,  entropy gap = NLL - mean entropy",
        about=f"{NUM_DRAWS // 2:,} draws from known probabilities over {NUM_CLASSES} classes, and a model whose logits "
        "are twice those of the truth. Its confidence is the largest of its probabilities. A reliability diagram "
        "compares the mean confidence of the predictions in each bin of confidence with the share of right answers, "
        "the accuracy; a calibrated model lies on the diagonal. The expected calibration error (ECE), the mean "
        "distance from it, knows the top class only. The entropy gap asks the whole distribution: it is the NLL less "
        "the entropy, which the model expects to pay. It is the derivative of the NLL in the scale of the logits: "
        "above 0, smaller logits (a temperature above 1) lower the NLL; below 0, larger ones do.",
    )
    _, (p, labels) = draw_halves(seed)
    doubled = 2 * p.log()
    low, share, confidence, accuracy = _bins(doubled, labels)
    distance = np.abs(accuracy - confidence)
    step.column("confidence", [f"{edge:g} to {edge + 1 / NUM_BINS:g}" for edge in low])
    step.column("share of predictions", share, ".4f")
    step.column("mean confidence", confidence, ".4f")
    step.column("accuracy", accuracy, ".4f")
    step.column("distance", distance, ".4f")
    meter = _meter(doubled, labels)
    ece, nll, gap = meter.ece(NUM_BINS), meter.metrics()["nll"], meter.metrics()["entropy_gap"]
    entropy = np.mean([exact.entropy(q) for q in doubled.softmax(dim=1).numpy()])
    sharper, flatter = (_mean_nll(scale * doubled, labels) for scale in (1 + 1e-5, 1 - 1e-5))
    slope = (sharper - flatter) / 2e-5
    step.identity("the mean distance, weighted by share = the meter's ECE in 10 bins", share @ distance, ece, 1e-7)
    step.identity("NLL - mean entropy = the entropy gap", nll - entropy, gap, 1e-7)
    step.identity("the entropy gap = dNLL/ds of softmax(s z) at s = 1, by central differences", gap, slope, 1e-6)
    step.plot("mean confidence of a bin", "accuracy")
    step.line("calibrated", [0.0, 1.0], [0.0, 1.0])
    step.dots("the truth", *_bins(p.log(), labels)[2:])
    step.dots("its logits doubled", confidence, accuracy)
    return step


def _bins(logits: Tensor, labels: Tensor) -> tuple[Array, Array, Array, Array]:
    """Return lower edge, share of predictions, mean confidence and accuracy of each bin that is not empty."""
    confidence, answer = (values.numpy() for values in logits.softmax(dim=1).max(dim=1))
    bins = (confidence * NUM_BINS).astype(int).clip(max=NUM_BINS - 1)
    filled, count = np.unique(bins, return_counts=True)
    confidence_sum = np.bincount(bins, confidence, NUM_BINS)[filled]
    num_right = np.bincount(bins, answer == labels.numpy(), NUM_BINS)[filled]
    return filled / NUM_BINS, count / len(labels), confidence_sum / count, num_right / count


def held_out_temperature(seed: int) -> Step:
    """Correct logits that are twice too large by a temperature that was fitted on other draws."""
    step = Step(
        title="Right as often, and overconfident",
        formula="softmax(z / T),  T = arg min NLL on the calibration half, where NLL = entropy",
        about="The same model. Its accuracy is that of the truth; its confidence is not. Accuracy cannot see it, and a "
        f"low NLL on training data does not exclude it. A temperature fixes it, fitted on {NUM_DRAWS // 2:,} draws; "
        "the table is measured on as many others, held out, where NLL and entropy are equal only up to the noise of "
        "the draws. One number suffices because this model was made by one; the last steps have models for which it "
        "does not.",
    )
    (p_fit, labels_fit), (p, labels) = draw_halves(seed)
    doubled = 2 * p.log()
    temperature = fit_temperature_from_logits(2 * p_fit.log(), labels_fit).temperature
    truth, sharp, fixed = (measure(logits, labels) for logits in (p.log(), doubled, doubled / temperature))
    names = ("p, the truth", "its logits doubled", f"doubled, at T = {temperature:.3f}")
    metric_columns(step, dict(zip(names, (truth, sharp, fixed), strict=True)))
    step.identity("the same accuracy as the truth", sharp["accuracy"], truth["accuracy"])
    # Over seeds T has a standard deviation of 0.03: four of them, relative to 2.
    step.identity("the fitted T is 2, within sampling", temperature, 2, 0.06)
    at_fit = measure(2 * p_fit.log() / temperature, labels_fit)
    step.identity("at T, on the half that it was fitted on, NLL = entropy", at_fit["nll"], at_fit["entropy"], 1e-5)
    held_out = softmax_nll(doubled / temperature, labels)
    assert held_out.entropy is not None, "a loss from logits has every statistic"
    noise = 4 * float((held_out.nll - held_out.entropy).std()) / math.sqrt(len(labels))
    statement = "at T, on the held-out half, NLL = entropy within four standard errors"
    step.identity(statement, fixed["nll"], fixed["entropy"], noise)
    temperatures = np.geomspace(0.8, 5, 25)
    step.plot("temperature", "NLL (nats), held out")
    step.line("NLL of the doubled logits", temperatures, [_mean_nll(doubled / t, labels) for t in temperatures])
    step.dots("at the fitted T", [temperature], [fixed["nll"]])
    step.level("NLL of the truth", truth["nll"])
    return step


def top_label_and_whole() -> Step:
    """Show a model that is overconfident by its top class and underconfident as a whole: T lowers NLL, raises ECE."""
    p, q = np.array([0.6, 0.35, 0.04, 0.01]), np.array([0.65, 0.2, 0.075, 0.075])
    step = Step(
        title="The whole distribution and its top class can disagree",
        formula="entropy gap = Σ (qₖ - pₖ) ln qₖ,  ECE = |q_max - p_max| where every input is alike",
        about=f"A hundred observations with the frequencies {p.tolist()} and a model that says {q.tolist()} to each. "
        f"Its confidence, {q[0]:g}, is above its accuracy, {p[0]:g}: the top class gets too much. Yet its entropy gap "
        "is below 0 and its best temperature below 1, because the rare classes get far too much, as under label "
        "smoothing, and sharpening takes it from them. At that T the NLL is lower, and ECE is higher. So the entropy "
        "gap and T speak of the whole distribution, ECE and confidence - accuracy of the top class alone.",
    )
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([60, 35, 4, 1]))
    true_logits, logits = (torch.from_numpy(np.log(row)).expand(len(labels), 4) for row in (p, q))
    temperature = fit_temperature_from_logits(logits, labels).temperature
    truth, plain, sharpened = (measure(z, labels) for z in (true_logits, logits, logits / temperature))
    metric_columns(step, {"p, the truth": truth, "q": plain, f"q at T = {temperature:.3f}": sharpened})
    step.identity("Σ (qₖ - pₖ) ln qₖ = the entropy gap", (q - p) @ np.log(q), plain["entropy_gap"], 1e-7)
    step.identity("q_max - p_max = ECE", q[0] - p[0], plain["ece"], 1e-7)
    step.identity("at T, NLL = entropy", sharpened["nll"], sharpened["entropy"], 1e-5)
    temperatures = np.geomspace(0.7, 1.4, 29)
    along = [measure(logits / t, labels) for t in temperatures.tolist()]
    step.plot("temperature", "ECE, entropy gap (nats)")
    step.line("ECE", temperatures, [metrics["ece"] for metrics in along])
    step.line("entropy gap", temperatures, [metrics["entropy_gap"] for metrics in along])
    step.dots("at the fitted T", [temperature] * 2, [sharpened["ece"], 0.0])
    step.level("0", 0.0)
    return step


def draw_halves(seed: int) -> tuple[Draws, Draws]:
    """Draw (N, V) true probabilities with one class (N,) from each: a half to fit on, and one held out."""
    generator = np.random.default_rng(seed)
    p = torch.from_numpy(generator.dirichlet(np.full(NUM_CLASSES, 0.3), size=NUM_DRAWS)).clamp_min(1e-5)
    p /= p.sum(dim=1, keepdim=True)
    uniform = torch.from_numpy(generator.uniform(size=(NUM_DRAWS, 1)))
    labels = (p.cumsum(dim=1) < uniform).sum(dim=1).clamp(max=NUM_CLASSES - 1)
    half = NUM_DRAWS // 2
    return (p[:half], labels[:half]), (p[half:], labels[half:])


def metric_columns(step: Step, measured: dict[str, dict[str, float]]) -> None:
    """Add a table with a row of metrics for each model."""
    step.column("probabilities", measured)
    for header in ("NLL", "accuracy", "confidence", "ECE", "entropy gap"):
        step.column(header, [metrics[header.lower().replace(" ", "_")] for metrics in measured.values()], "z.4f")


def measure(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the metrics of (N, V) logits and (N,) labels."""
    return _meter(logits, labels).metrics()


def _meter(logits: Tensor, labels: Tensor) -> CalibrationMeter:
    return CalibrationMeter().update(softmax_nll(logits, labels))


def _mean_nll(logits: Tensor, labels: Tensor) -> float:
    return softmax_nll(logits, labels, reduction="mean").objective.item()
