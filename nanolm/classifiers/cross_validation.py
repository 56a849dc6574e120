"""Repeated stratified cross-validation: each example is scored once a repeat, by a model that has not seen it.

The training folds are divided once more. The model learns from the larger part, which also standardises its features;
the smaller one, the inner split, fits the temperature and decides when to stop early. The scored fold decides nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nanolm.calibration.calibrators import compare_calibrators
from nanolm.classifiers.classifier import Scored, as_softmax_logits, calibrate, classification_nll
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.distillation import fit_teacher, read_teacher
from nanolm.classifiers.folds import make_folds
from nanolm.classifiers.learner import Learner
from nanolm.config.schema import BaselineConfig
from nanolm.loss.dense import model_logits
from nanolm.metrics import Calibration, CalibrationMeter, CalibrationSize, CalibratorRow, Measurement, Tally
from nanolm.metrics.definitions import of_rows
from nanolm.metrics.records import Draw
from nanolm.objective import distillation_of, loss_options
from nanolm.seeds import derive_seed

DURING_TRAINING = ("nll", "perplexity", "accuracy", "confidence", "entropy", "entropy_gap", "ece")
NUM_DRAWS = 5


class CrossValidation:
    """All folds of all repeats, fitted side by side, so that each epoch has one line of metrics for all of them."""

    def __init__(
        self, dataset: Dataset, config: BaselineConfig, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Prepare a learner for each fold, and fit the teacher of each if the configuration names one.

        A teacher's random numbers are those of its own run: with the seed and the folds that it had there, it is the
        same model again.

        Raises:
            DataError: a class has too few examples for the folds.
            ConfigError, CheckpointError: the teacher is no finished baseline of the same data.
        """
        self.dataset, self.config, self.options = dataset, config, loss_options(config.loss)
        self.models = [
            Learner(dataset, fold, config.task, self.options, derive_seed(config.seed, 1, fold.repeat, fold.number))
            for fold in make_folds(dataset, config.cross_validation, config.seed)
        ]
        self.teacher = read_teacher(config)
        if self.teacher is not None:
            distillation = distillation_of(config.loss)
            for done, model in enumerate(self.models, start=1):
                seed = derive_seed(self.teacher.seed, 1, model.fold.repeat, model.fold.number)
                model.learn_from(fit_teacher(self.teacher, dataset, model.fold, seed), distillation)
                progress(done, len(self.models))

    def train_epoch(self, epoch: int) -> tuple[int, dict[str, float]]:
        """Train every fold for an epoch; return the number of examples seen and the ``train/`` metrics.

        The number is 0 once early stopping has ended all folds.
        """
        steps = [step for model in self.models for step in model.train_epoch(epoch)]
        if not steps:
            return 0, {}
        tally, num_examples, objective_sum = Tally(), 0, 0.0
        for result, _ in steps:
            tally.add(result)
            num_examples += len(result.nll)
            objective_sum += float(result.objective) * len(result.nll)
        found = of_rows(tally.rows()[0])
        return num_examples, {f"train/{name}": found[name] for name in DURING_TRAINING} | {
            "train/objective": objective_sum / num_examples,
            "train/grad_norm": math.sqrt(sum(squared_gradient for _, squared_gradient in steps) / len(steps)),
            "train/weight_norm": float(np.mean([model.weight_norm() for model in self.models])),
        }

    def score(self) -> dict[str, float]:
        """Return the metrics of the pooled out-of-fold predictions of the models as they are now."""
        meter = CalibrationMeter()
        for model in self.models:
            meter.update(classification_nll(*model.predict(model.scored), self.options))
        return meter.metrics()

    def finish(self) -> None:
        """End the training of every fold, see ``Learner.finish``."""
        for model in self.models:
            model.finish()

    def measure(self, split: Literal["val", "train"] = "val") -> Measurement:
        """Measure pooled predictions at T = 1 and at each fold's own temperature; at 1 if it has none.

        Args:
            split: "val" for the out-of-fold predictions, "train" for those on what each fold's model learned from.
        """
        parts = self.config.cross_validation
        repeats = parts.repeats if split == "val" else parts.repeats * (parts.folds - 1)
        together = f", the {repeats} repeats of each in one unit" if repeats > 1 else ""
        any_temperature = any(model.calibration.value is not None for model in self.models)
        measured = Measurement(
            split,
            f"95 % intervals over {len(self.dataset):,} examples{together}; how much other training examples would "
            "move the model is not in them",
            num_documents=len(self.dataset),
            at_temperature=any_temperature,
        )
        for model in self.models:
            examples, numbers = model.scored, model.fold.scored
            if split == "train":
                examples, numbers = model.learning, model.fold.learning
            predictions = model.predict(examples)
            at_temperature = self.options.at_temperature(model.calibration.value or 1.0)
            scaled = classification_nll(*predictions, at_temperature) if any_temperature else None
            measured.add(classification_nll(*predictions, self.options), numbers, scaled=scaled)
        return measured

    def pooled_calibration(self) -> Calibration:
        """Fit one temperature, with its interval, to all inner splits: for the report, not for scoring."""
        logits, labels = zip(*(model.predict(model.inner) for model in self.models), strict=True)
        units = np.concatenate([model.fold.calibration for model in self.models])
        return calibrate((torch.cat(logits), torch.cat(labels)), self.options, units)

    def temperature_by_size(self, sizes: Sequence[int]) -> list[CalibrationSize]:
        """Fit each fold's temperature on random examples of its inner split, five draws of each size.

        A draw holds the geometric mean of the folds' temperatures and the out-of-fold NLL at them. A fold without a
        temperature counts as refused and is scored at T = 1. Sizes above the smallest inner split are left out.
        """
        at_one = self.score()["nll"]
        folds = [(model.predict(model.inner), model.predict(model.scored)) for model in self.models]
        smallest = min(len(labels) for (_, labels), _ in folds)

        def draw(size: int, number: int) -> Draw:
            meter, fitted = CalibrationMeter(), []
            for place, ((logits, labels), scored) in enumerate(folds):
                generator = np.random.default_rng(derive_seed(self.config.seed, 3, size, number, place))
                chosen = torch.from_numpy(generator.permutation(len(labels))[:size])
                temperature = calibrate((logits[chosen], labels[chosen]), self.options).value
                meter.update(classification_nll(*scored, self.options.at_temperature(temperature or 1.0)))
                if temperature is not None:
                    fitted.append(temperature)
            if not fitted:
                return Draw(temperature=None, nll=None, num_refused=len(folds))
            mean = math.exp(sum(map(math.log, fitted)) / len(fitted))
            return Draw(temperature=mean, nll=meter.metrics()["nll"], num_refused=len(folds) - len(fitted))

        return [
            CalibrationSize(num_tokens=size, nll_at_one=at_one, draws=[draw(size, i) for i in range(NUM_DRAWS)])
            for size in sorted(sizes)
            if size <= smallest
        ]

    def compare_calibrators(self) -> list[CalibratorRow]:
        """Fit each calibrator on the inner splits and score it on the out-of-fold examples; return a row for each."""

        def as_softmax(logits: Tensor, labels: Tensor) -> Scored:
            return as_softmax_logits(model_logits(logits, self.options)), labels

        return compare_calibrators(
            [(as_softmax(*m.predict(m.inner)), as_softmax(*m.predict(m.scored))) for m in self.models],
            self.config.loss.label_smoothing,
        )
