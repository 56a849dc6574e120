"""What maximum likelihood does when it is left to go on, and what holds it.

Where the classes can be told apart, every step that makes all logits larger raises the likelihood of the data learnt
from: weights, margins and confidence grow without an end (in direction towards the largest margin: Soudry et al. 2018,
arXiv:1710.10345), while the number of right answers on other data has long stood still. Early stopping, an L2 penalty
and label smoothing each end that. All fits here are by full batches, on one and the same part of the examples.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor

from nanolm.baselines.classifier import classification_nll, margins
from nanolm.baselines.datasets import Dataset
from nanolm.baselines.learner import EpochSums, Examples, Learner
from nanolm.calibration import GroupedMeter
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.loss import LossOptions
from nanolm.seeds import derive_seed

NUM_POINTS = 25
LEARNING_RATE = 0.05

Part = tuple[Tensor, Tensor]


def study_separation(
    dataset: Dataset, config: BaselineConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Fit the task's model four ways, each for the same number of steps, and follow what grows.

    It is about maximum likelihood, so a teacher, where there is one, plays no part in it.

    A fifth of the examples is scored, a fifth is what early stopping watches, and three fifths are learnt from.

    Returns:
        ``num_learning``, ``num_validation``, ``num_scored``, ``epochs`` (those that the curves have points at) and
        ``fits``: for each its ``name``, ``epoch`` (the one that its ``final`` figures are of), ``final``, and
        ``curves``, a list for each figure. Figures: ``weight_norm``, ``margin`` (median over what was learnt from, in
        nats), ``train_nll``, ``train_accuracy``, and of the scored part ``nll``, ``accuracy``, ``confidence``.
    """
    num_epochs = config.separation.epochs
    assert num_epochs is not None, "the study was asked for"
    numbers = np.arange(len(dataset))
    state = derive_seed(config.seed, 2) % 2**32
    rest, scored = train_test_split(numbers, test_size=0.2, stratify=dataset.labels, random_state=state)
    learning, validation = train_test_split(rest, test_size=0.25, stratify=dataset.labels[rest], random_state=state)
    examples = Examples(dataset, fitted_on=learning)
    parts = examples(learning), examples(validation), examples(scored)
    epochs = sorted({round(float(e)) for e in np.geomspace(1, num_epochs, NUM_POINTS)})

    ways = {
        "maximum likelihood": (0.0, 0.0),
        f"L2 penalty, {config.separation.l2:g}": (config.separation.l2, 0.0),
        f"label smoothing, {config.separation.label_smoothing:g}": (0.0, config.separation.label_smoothing),
    }
    fits = []
    for place, (name, (l2, label_smoothing)) in enumerate(ways.items()):
        task = replace(config.task, l2=l2, batch_size=None, dropout=0.0, patience=None, learning_rate=LEARNING_RATE)
        learner = Learner(
            task, dataset.num_classes, *parts[:2], LossOptions(label_smoothing=label_smoothing), config.seed
        )
        fit, best = _follow(
            learner, parts, epochs, partial(_shifted, progress, place * num_epochs, len(ways) * num_epochs)
        )
        fits.append({"name": name, **fit})
        if place == 0:
            fits.append({"name": "early stopping", **best})
    return {
        "num_learning": len(learning),
        "num_validation": len(validation),
        "num_scored": len(scored),
        "epochs": epochs,
        "fits": fits,
    }


def _shifted(progress: Callable[[int, int], None], done: int, total: int, epoch: int) -> None:
    progress(done + epoch, total)


def _follow(
    learner: Learner, parts: tuple[Part, Part, Part], epochs: list[int], progress: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train to the last of the epochs; the curves, and those that stay as they were at the best NLL on validation."""
    learnt, watched, scored = parts
    points: list[dict[str, float]] = []
    best_nll, best_epoch, best = float("inf"), 0, {}
    for epoch in range(1, epochs[-1] + 1):
        learner.train_epoch(epoch, EpochSums(GroupedMeter(1)))
        progress(epoch)
        nll = float(classification_nll(learner.logits(watched[0]), watched[1]).nll.mean())
        if nll < best_nll:
            best_nll, best_epoch, best = nll, epoch, _figures(learner, learnt, scored)
        if epoch == epochs[len(points)]:
            points.append(_figures(learner, learnt, scored))
    held = [point if epoch < best_epoch else best for epoch, point in zip(epochs, points, strict=True)]
    return (
        {"epoch": epochs[-1], "final": points[-1], "curves": _curves(points)},
        {"epoch": best_epoch, "final": best, "curves": _curves(held)},
    )


def _figures(learner: Learner, learnt: Part, scored: Part) -> dict[str, float]:
    logits = learner.logits(learnt[0])
    train = classification_nll(logits, learnt[1])
    held_out = classification_nll(learner.logits(scored[0]), scored[1])
    assert train.correct is not None, "a loss from logits has every statistic"
    assert held_out.correct is not None, "a loss from logits has every statistic"
    assert held_out.confidence is not None, "a loss from logits has every statistic"
    return {
        "weight_norm": learner.model.weight_norm(),
        "margin": float(margins(logits, learnt[1]).median()),
        "train_nll": float(train.nll.mean()),
        "train_accuracy": float(train.correct.double().mean()),
        "nll": float(held_out.nll.mean()),
        "accuracy": float(held_out.correct.double().mean()),
        "confidence": float(held_out.confidence.mean()),
    }


def _curves(points: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [point[name] for point in points] for name in points[0]}
