"""Repeated stratified cross-validation: each example is scored once a repeat, by a model that has not seen it.

The training folds of a fold are divided once more: on the larger part the model learns (and its features are
standardised), on the smaller one the temperature is fitted and early stopping looks. The scored fold decides nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, train_test_split

from nanolm.calibration import CalibrationMeter, fit_temperature_from_logits
from nanolm.calibration.calibrators import compare_calibrators_over_folds
from nanolm.calibration.temperature import CalibrationRefused
from nanolm.classifiers.classifier import as_softmax_logits, classification_nll
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.distillation import distilled_likelihood, fit_teacher, read_teacher
from nanolm.classifiers.learner import EpochSums, Examples, Indices, Learner, loss_options
from nanolm.config.schema_baseline import BaselineConfig, CrossValidationConfig
from nanolm.errors import DataError
from nanolm.evaluation import FittedTemperature, Measurement, prediction_values
from nanolm.evaluation.temperature import CURVE_RATIOS
from nanolm.loss import Distillation
from nanolm.loss.dense import soft_capped
from nanolm.metrics import GroupedMeter
from nanolm.metrics.sums import UnitSums
from nanolm.seeds import derive_seed


@dataclass(frozen=True)
class Fold:
    """Numbers of the examples of three parts that share none."""

    repeat: int
    number: int
    learning: Indices
    calibration: Indices
    scored: Indices


def make_folds(dataset: Dataset, config: CrossValidationConfig, seed: int) -> list[Fold]:
    """Folds in which each class has its share, drawn anew for each repeat.

    Raises:
        DataError: a class has too few examples to be in every part.
    """
    labels = dataset.labels
    counts = np.bincount(labels, minlength=dataset.num_classes)
    smallest = int(counts.argmin())
    rest = counts[smallest] - math.ceil(counts[smallest] / config.folds)  # of it in the smallest training folds
    if rest < 2 or counts[smallest] < config.folds:
        needed = max(config.folds, math.ceil(2 * config.folds / (config.folds - 1)))
        raise DataError(
            f"{dataset.name}: expected at least {needed} examples of each class for "
            f"cross_validation.folds={config.folds}, found {counts[smallest]} of class "
            f"{dataset.class_names[smallest]!r}; give more rows, merge rare classes, or lower the number of folds"
        )
    num_training = len(labels) - math.ceil(len(labels) / config.folds)
    num_calibrating = math.ceil(config.calibration_fraction * num_training)
    if min(num_calibrating, num_training - num_calibrating) < dataset.num_classes:
        raise DataError(
            f"cross_validation.calibration_fraction={config.calibration_fraction:g}: expected at least one example of "
            f"each of the {dataset.num_classes} classes on either side, found {num_training - num_calibrating} "
            f"examples to learn from and {num_calibrating} to calibrate on in a fold; "
            "choose another fraction, or give more rows"
        )
    found = []
    for repeat in range(config.repeats):
        state = derive_seed(seed, repeat) % 2**32  # what scikit-learn takes
        splitter = StratifiedKFold(config.folds, shuffle=True, random_state=state)
        for number, (training, scored) in enumerate(splitter.split(labels, labels)):
            learning, calibration = train_test_split(
                training, test_size=num_calibrating, stratify=labels[training], random_state=state
            )
            found.append(Fold(repeat, number, np.sort(learning), np.sort(calibration), scored))
    return found


class FoldModel:
    """The learner of one fold, and the temperature that its inner split gives."""

    def __init__(self, dataset: Dataset, fold: Fold, config: BaselineConfig, seed: int) -> None:
        self.fold, self._distillation = fold, config.loss.distillation
        examples = Examples(dataset, fitted_on=fold.learning)
        self.calibration, self.scored = examples(fold.calibration), examples(fold.scored)
        options = loss_options(config.loss)
        learning = examples(fold.learning)
        self.learner = Learner(config.task, dataset.num_classes, learning, self.calibration, options, seed)

    def learn_from(self, teacher: BaselineConfig, seed: int) -> Learner:
        """Fit a teacher on what this fold learns from, make its probabilities targets too, and return it."""
        student = self.learner
        learning = student.features, student.targets
        fitted = fit_teacher(teacher, student.num_classes, learning, self.calibration, seed)
        student.objective = distilled_likelihood(
            student.targets,
            student.options,
            fitted.logits(student.features),
            fitted.options,
            Distillation(self._distillation.weight, self._distillation.temperature),
        )
        return fitted

    def calibration_logits(self) -> torch.Tensor:
        """Logits of the examples of the inner split."""
        return self.learner.logits(self.calibration[0])

    def fit_temperature(self) -> float | str:
        """The temperature of the inner split, or the reason why there is none; it knows nothing of the scored fold."""
        try:
            return fit_temperature_from_logits(
                self.calibration_logits(), self.calibration[1], self.learner.scoring
            ).temperature
        except CalibrationRefused as error:
            return str(error)


class CrossValidation:
    """All folds of all repeats, fitted side by side, so that each epoch has one line of figures for all of them."""

    def __init__(
        self, dataset: Dataset, config: BaselineConfig, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Fit the teachers, where there is one, all of them before any student begins.

        A teacher's random numbers are those of its own run: with the seed and the folds that it had there, it is the
        same model again.

        Raises:
            DataError: the examples cannot be divided so.
            ConfigError, CheckpointError: the teacher is not what it should be.
        """
        self.dataset, self.config = dataset, config
        self.models = [
            FoldModel(dataset, fold, config, derive_seed(config.seed, 1, fold.repeat, fold.number))
            for fold in make_folds(dataset, config.cross_validation, config.seed)
        ]
        self.teacher = teacher = read_teacher(config)
        if teacher is not None:
            for done, model in enumerate(self.models, start=1):
                model.learn_from(teacher, derive_seed(teacher.seed, 1, model.fold.repeat, model.fold.number))
                progress(done, len(self.models))
        self.scoring = self.models[0].learner.scoring
        self._temperatures: list[float | str] = []

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One epoch of every fold: ``train/`` figures of all their examples together, and ``examples``, their number.

        Empty where early stopping has ended all folds.
        """
        sums = EpochSums(GroupedMeter(1))
        for model in self.models:
            model.learner.train_epoch(epoch, sums)
        figures = sums.meter.group_metrics(0)
        if figures is None:
            return {}
        count = int(sums.meter.num_tokens()[0])
        logged = ("nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap", "ece")
        return {f"train/{name}": figures[name] for name in logged} | {
            "examples": count,
            "train/objective": sums.objective / count,
            "train/grad_norm": math.sqrt(sums.squared_gradient / sums.num_steps),
            "train/weight_norm": float(np.mean([model.learner.model.weight_norm() for model in self.models])),
        }

    def score(self) -> CalibrationMeter:
        """The out-of-fold predictions as the models are now, pooled."""
        meter = CalibrationMeter()
        for model in self.models:
            features, targets = model.scored
            meter.update(classification_nll(model.learner.logits(features), targets, self.scoring))
        return meter

    def finish(self) -> None:
        """After the last epoch: early stopping keeps its best weights, and each fold's temperature is fitted."""
        for model in self.models:
            model.learner.finish()
        self._temperatures = [model.fit_temperature() for model in self.models]

    @property
    def temperatures(self) -> list[float | str]:
        """For each fold its temperature, or the reason why it has none; a fold without is scored at T = 1."""
        assert self._temperatures, "finish() comes first"
        return self._temperatures

    def measure(self, split: Literal["val", "train"] = "val") -> Measurement:
        """Every figure of the pooled predictions, each fold at T = 1 and at its own temperature.

        Args:
            split: val are the out-of-fold predictions; train are those of each fold's model on what it learnt from.
        """
        units = UnitSums(len(self.dataset))
        plain, at_temperature = CalibrationMeter(), CalibrationMeter()
        for model, found in zip(self.models, self.temperatures, strict=True):
            examples, numbers = model.scored, model.fold.scored
            if split == "train":
                examples, numbers = (model.learner.features, model.learner.targets), model.fold.learning
            features, targets = examples
            logits = model.learner.logits(features)
            temperature = found if isinstance(found, float) else 1.0
            softer = replace(self.scoring, temperature=self.scoring.temperature * temperature)
            result, scaled = (classification_nll(logits, targets, options) for options in (self.scoring, softer))
            plain.update(result)
            at_temperature.update(scaled)
            units.add(numbers, prediction_values(result, scaled))
        parts = self.config.cross_validation
        repeats = parts.repeats if split == "val" else parts.repeats * (parts.folds - 1)
        together = f", the {repeats} repeats of each in one unit" if repeats > 1 else ""
        return Measurement(
            split=split,
            documents=units.values,
            about_intervals=(
                f"95 % intervals over {len(self.dataset):,} examples{together}; how much other training examples would "
                "move the model is not in them"
            ),
            meter=plain,
            meter_at_temperature=at_temperature if any(isinstance(t, float) for t in self.temperatures) else None,
        )

    @cached_property
    def _inner(self) -> tuple[torch.Tensor, torch.Tensor, Indices]:
        """Logits, labels and example numbers of all inner splits together; no model has learnt from its own."""
        return (
            torch.cat([model.calibration_logits() for model in self.models]),
            torch.cat([model.calibration[1] for model in self.models]),
            np.concatenate([model.fold.calibration for model in self.models]),
        )

    def pooled_temperature(self) -> FittedTemperature | str:
        """One temperature for all inner splits together, with its interval; what a report shows, not what scores."""
        logits, targets, units = self._inner
        try:
            fit = fit_temperature_from_logits(logits, targets, self.scoring, units)
        except CalibrationRefused as error:
            return str(error)
        curve = []
        for temperature in fit.temperature * CURVE_RATIOS:
            softer = replace(self.scoring, temperature=self.scoring.temperature * float(temperature))
            curve.append((float(temperature), float(classification_nll(logits, targets, softer).nll.mean())))
        return FittedTemperature("calibration", fit, curve)

    def compare_calibrators(self) -> list[dict[str, str | float]]:
        """One row for each calibrator: fitted on each fold's inner split, scored on the pooled out-of-fold examples."""
        folds = [
            (
                (self._model_logits(model.calibration_logits()), model.calibration[1]),
                (self._model_logits(model.learner.logits(model.scored[0])), model.scored[1]),
            )
            for model in self.models
        ]
        return compare_calibrators_over_folds(folds, self.config.loss.label_smoothing)

    def _model_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, V) logits of the model's distribution: softcap and temperature applied."""
        return as_softmax_logits(soft_capped(logits, self.scoring.softcap) / self.scoring.temperature)
