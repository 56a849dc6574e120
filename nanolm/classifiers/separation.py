"""A study of maximum likelihood on separable data: what grows without end, and what holds it.

If the classes can be separated, every step that makes all logits larger raises the likelihood of the training data: in
theory weights, margins and confidence grow without bound (in direction towards the largest margin: Soudry et al. 2018,
arXiv:1710.10345). The study follows maximum likelihood until it has separated its training data and far beyond, if it
does separate them, and reports what was measured. All fits are by full batches, on the same part of the examples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from nanolm.classifiers.classifier import classification_nll, margins
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.evaluation import Lowest, Separation, SeparationFit, SeparationPoint
from nanolm.classifiers.folds import Fold
from nanolm.classifiers.learner import Learner
from nanolm.config.schema import BaselineConfig
from nanolm.loss import LossOptions
from nanolm.metrics import Tally
from nanolm.metrics.definitions import of_rows
from nanolm.seeds import derive_seed

NUM_POINTS = 60
LEARNING_RATE = 0.05
SMALLEST_GRADIENT = 1e-5
"""norm at which maximum likelihood ends: at an optimum, or where it hardly moves on its way to infinity"""


def study_separation(
    dataset: Dataset, config: BaselineConfig, progress: Callable[[int, int], None] = lambda done, total: None
) -> Separation:
    """Fit the task's model in four ways and follow what grows.

    Maximum likelihood goes first, for ``separation.epochs`` or until its gradient all but vanishes; the others take as
    many steps. A fifth of the examples is scored, early stopping watches a fifth, and the rest is learned from. A
    teacher plays no part.
    """
    num_epochs = config.separation.epochs
    assert num_epochs is not None, "the study was asked for"
    state = derive_seed(config.seed, 2) % 2**32
    rest, scored = train_test_split(np.arange(len(dataset)), test_size=0.2, stratify=dataset.labels, random_state=state)
    learning, validation = train_test_split(rest, test_size=0.25, stratify=dataset.labels[rest], random_state=state)
    task = replace(config.task, batch_size=None, dropout=0.0, patience=None, learning_rate=LEARNING_RATE)

    def path(l2: float = 0.0, label_smoothing: float = 0.0) -> _Path:
        options = LossOptions(label_smoothing=label_smoothing)
        parts = Fold(0, 0, learning, validation, scored)
        return _Path(Learner(dataset, parts, replace(task, l2=l2), options, config.seed))

    due = sorted({round(float(epoch)) for epoch in np.geomspace(1, num_epochs, NUM_POINTS)})
    free = path()
    for epoch in free.follow(due, SMALLEST_GRADIENT):
        progress(epoch, 3 * num_epochs)
    fits = [free.fit("maximum likelihood"), free.fit("early stopping", int(np.argmin(free.validation_nll)))]
    l2, smoothing = config.separation.l2, config.separation.label_smoothing
    held = {f"L2 penalty, {l2:g}": path(l2=l2), f"label smoothing, {smoothing:g}": path(label_smoothing=smoothing)}
    for place, (name, fitted) in enumerate(held.items(), start=1):
        last = free.epochs[-1]
        for epoch in fitted.follow(free.epochs):
            progress(place * last + epoch, 3 * last)
        fits.append(fitted.fit(name))
    return Separation(
        num_learning=len(learning),
        num_validation=len(validation),
        num_scored=len(scored),
        separated_at=free.separated_at,
        gradient_norm=free.gradient_norm,
        epochs=free.epochs,
        fits=fits,
    )


@dataclass
class _Path:
    """The measurements along one fit; the lists have one entry for each epoch that was measured."""

    learner: Learner
    epochs: list[int] = field(default_factory=list)
    points: list[SeparationPoint] = field(default_factory=list)
    validation_nll: list[float] = field(default_factory=list)
    separated_at: int | None = None
    gradient_norm: float = math.inf

    def follow(self, due: list[int], smallest_gradient: float = 0.0) -> Iterator[int]:
        """Train and measure at the epochs due, until the gradient's norm falls below the smallest; yield each epoch."""
        everything = torch.arange(len(self.learner.learning[1]))
        for epoch in range(1, due[-1] + 1):
            result, squared_gradient = self.learner.step(everything)
            assert result.correct is not None, "a loss from logits has every statistic"
            self.gradient_norm = math.sqrt(squared_gradient)
            if self.separated_at is None and bool(result.correct.all()):
                self.separated_at = epoch
            ends = self.gradient_norm < smallest_gradient
            if ends or epoch in due:
                self._measure(epoch)
            yield epoch
            if ends:
                return

    def _measure(self, epoch: int) -> None:
        learner = self.learner
        train, held_out, validation = (
            of_rows(Tally().add(classification_nll(*learner.predict(part))).rows()[0])
            for part in (learner.learning, learner.scored, learner.inner)
        )
        self.epochs.append(epoch)
        self.validation_nll.append(validation["nll"])
        self.points.append(
            SeparationPoint(
                weight_norm=learner.weight_norm(),
                margin=float(margins(*learner.predict(learner.learning)).median()),
                train_nll=train["nll"],
                train_accuracy=train["accuracy"],
                **{name: held_out[name] for name in ("nll", "accuracy", "confidence")},
            )
        )

    def fit(self, name: str, last: int = -1) -> SeparationFit:
        """Return the fit that ends at the ``last`` of these points; after it the curves stay as they are."""
        points = self.points[: last % len(self.points) + 1]
        held = points + points[-1:] * (len(self.points) - len(points))
        lowest = min(range(len(points)), key=lambda place: points[place].nll)
        return SeparationFit(
            name=name,
            epoch=self.epochs[last],
            final=points[-1],
            lowest=Lowest(epoch=self.epochs[lowest], nll=points[lowest].nll),
            curves={metric: [getattr(point, metric) for point in held] for metric in SeparationPoint.model_fields},
        )
