"""What maximum likelihood does when it is left to go on, and what holds it.

Where the classes can be told apart, every step that makes all logits larger raises the likelihood of the training
data: in theory weights, margins and confidence grow without bound (in direction towards the largest margin: Soudry et
al. 2018, arXiv:1710.10345). The study follows maximum likelihood until it has separated its training data and far
beyond, if it does separate them, and reports what was measured. All fits here are by full batches, on one and the same
part of the examples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from nanolm.classifiers.classifier import classification_nll, margins
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.learner import Examples, Learner
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.loss import LossOptions, NLLResult
from nanolm.seeds import derive_seed

NUM_POINTS = 60
LEARNING_RATE = 0.05
SMALLEST_GRADIENT = 1e-5
"""norm at which maximum likelihood ends: at an optimum, or so far on its way to infinity that it hardly moves"""

Part = tuple[Tensor, Tensor]


def study_separation(
    dataset: Dataset, config: BaselineConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Fit the task's model four ways, each for the same number of steps, and follow what grows.

    Maximum likelihood goes first, for ``separation.epochs`` or until its gradient all but vanishes; the others take as
    many steps. It is about maximum likelihood, so a teacher, where there is one, plays no part in it.

    A fifth of the examples is scored, a fifth is what early stopping watches, and three fifths are learnt from.

    Returns:
        ``num_learning``, ``num_validation``, ``num_scored``, ``separated_at`` (the first epoch at whose start maximum
        likelihood had every training example right, or None), ``gradient_norm`` (of maximum likelihood at its end),
        ``epochs`` (those that the curves have points at, and that early stopping looks at) and ``fits``: for each its
        ``name``, ``epoch`` (the one that its ``final`` metrics are of), ``final``, ``lowest`` (``epoch`` and ``nll`` of
        the point with the lowest NLL of the scored part) and ``curves``, a list for each metric. Metrics:
        ``weight_norm``, ``margin`` (median over the training examples, in nats), ``train_nll``, ``train_accuracy``,
        and of the scored part ``nll``, ``accuracy``, ``confidence``.
    """
    num_epochs = config.separation.epochs
    assert num_epochs is not None, "the study was asked for"
    numbers = np.arange(len(dataset))
    state = derive_seed(config.seed, 2) % 2**32
    rest, scored = train_test_split(numbers, test_size=0.2, stratify=dataset.labels, random_state=state)
    learning, validation = train_test_split(rest, test_size=0.25, stratify=dataset.labels[rest], random_state=state)
    examples = Examples(dataset, fitted_on=learning)
    parts = examples(learning), examples(validation), examples(scored)

    ways = {
        "maximum likelihood": (0.0, 0.0),
        f"L2 penalty, {config.separation.l2:g}": (config.separation.l2, 0.0),
        f"label smoothing, {config.separation.label_smoothing:g}": (0.0, config.separation.label_smoothing),
    }
    due = sorted({round(float(epoch)) for epoch in np.geomspace(1, num_epochs, NUM_POINTS)})
    found: dict[str, Any] = {}
    fits: list[dict[str, Any]] = []
    for place, (name, (l2, label_smoothing)) in enumerate(ways.items()):
        task = replace(config.task, l2=l2, batch_size=None, dropout=0.0, patience=None, learning_rate=LEARNING_RATE)
        learner = Learner(
            task, dataset.num_classes, *parts[:2], LossOptions(label_smoothing=label_smoothing), config.seed
        )
        path = _follow(
            learner,
            parts,
            due,
            SMALLEST_GRADIENT if place == 0 else 0.0,
            partial(_shifted, progress, place * due[-1], len(ways) * due[-1]),
        )
        fits.append(_fit(name, path, len(path.epochs) - 1))
        if place == 0:
            fits.append(_fit("early stopping", path, int(np.argmin(path.validation_nll))))
            due = path.epochs
            found = {"separated_at": path.separated_at, "gradient_norm": path.gradient_norm, "epochs": path.epochs}
    return {
        "num_learning": len(learning),
        "num_validation": len(validation),
        "num_scored": len(scored),
        **found,
        "fits": fits,
    }


def _shifted(progress: Callable[[int, int], None], done: int, total: int, epoch: int) -> None:
    progress(done + epoch, total)


@dataclass
class _Path:
    """What was measured on the way of one fit; the lists have one entry for each epoch that was looked at."""

    epochs: list[int] = field(default_factory=list)
    points: list[dict[str, float]] = field(default_factory=list)
    validation_nll: list[float] = field(default_factory=list)
    separated_at: int | None = None
    gradient_norm: float = math.inf


def _follow(
    learner: Learner,
    parts: tuple[Part, Part, Part],
    due: list[int],
    smallest_gradient: float,
    progress: Callable[[int], None],
) -> _Path:
    """Train to the last of the epochs due, or until the gradient's norm falls below the smallest; measure at each."""
    learnt, validation, scored = parts
    path, everything = _Path(), torch.arange(len(learnt[1]))
    for epoch in range(1, due[-1] + 1):
        result, _, squared_gradient = learner.step(everything)
        assert result.correct is not None, "a loss from logits has every statistic"
        path.gradient_norm = math.sqrt(squared_gradient)
        if path.separated_at is None and bool(result.correct.all()):
            path.separated_at = epoch
        ends = path.gradient_norm < smallest_gradient
        if ends or epoch == due[len(path.epochs)]:
            path.epochs.append(epoch)
            path.points.append(_metrics(learner, learnt, scored))
            path.validation_nll.append(_result(learner, validation).nll.mean().item())
        progress(epoch)
        if ends:
            break
    return path


def _fit(name: str, path: _Path, last: int) -> dict[str, Any]:
    """A fit that ends at the last of these points; after it the curves stay as they are."""
    points = path.points[: last + 1]
    lowest = min(range(last + 1), key=lambda place: points[place]["nll"])
    held = points + [points[last]] * (len(path.points) - len(points))
    return {
        "name": name,
        "epoch": path.epochs[last],
        "final": points[last],
        "lowest": {"epoch": path.epochs[lowest], "nll": points[lowest]["nll"]},
        "curves": {metric: [point[metric] for point in held] for metric in held[0]},
    }


def _result(learner: Learner, part: Part) -> NLLResult:
    return classification_nll(learner.logits(part[0]), part[1])


def _metrics(learner: Learner, learnt: Part, scored: Part) -> dict[str, float]:
    train, held_out = _result(learner, learnt), _result(learner, scored)
    assert train.correct is not None, "a loss from logits has every statistic"
    assert held_out.correct is not None, "a loss from logits has every statistic"
    assert held_out.confidence is not None, "a loss from logits has every statistic"
    return {
        "weight_norm": learner.model.weight_norm(),
        "margin": float(margins(learner.logits(learnt[0]), learnt[1]).median()),
        "train_nll": float(train.nll.mean()),
        "train_accuracy": float(train.correct.double().mean()),
        "nll": float(held_out.nll.mean()),
        "accuracy": float(held_out.correct.double().mean()),
        "confidence": float(held_out.confidence.mean()),
    }
