"""One classifier being fitted, epoch by epoch: standardised features, Adam, early stopping if it is asked for."""

import copy
import math
from dataclasses import replace

import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nanolm.classifiers.classifier import Scored, build_model, calibrate, classification_nll
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.folds import Fold
from nanolm.config.schema import TaskConfig
from nanolm.errors import NonFiniteError
from nanolm.loss import Distillation, LossOptions, NLLResult
from nanolm.loss.distillation import soft_probabilities
from nanolm.metrics import Calibration
from nanolm.seeds import derive_seed

Examples = tuple[Tensor, Tensor]
"""(N, F) standardised features with their (N,) labels"""
Step = tuple[NLLResult, float]
"""the result before a step, its objective including the penalty, and the squared norm of the gradient"""


class Learner:
    """The model of one fold, with the three parts of the examples standardised by the part that it learns from.

    Every random number of epoch e is a function of the seed and e: learners may take their turns in any order.

    Attributes:
        learning: what the model learns from.
        inner: what early stopping watches, and the temperature is fitted on.
        scored: the held-out examples, which decide nothing.
        stopped_at: the epoch whose weights are kept, once early stopping has ended the training.
        calibration: the temperature once the training is finished, or the reason why there is none.
    """

    def __init__(self, dataset: Dataset, fold: Fold, task: TaskConfig, options: LossOptions, seed: int) -> None:
        self.fold, self.options = fold, options
        scaler = StandardScaler().fit(dataset.features[fold.learning])
        self.learning, self.inner, self.scored = (
            (torch.from_numpy(scaler.transform(dataset.features[part])), torch.from_numpy(dataset.labels[part]))
            for part in (fold.learning, fold.calibration, fold.scored)
        )
        self.stopped_at: int | None = None
        self.calibration = Calibration.none("the training is not finished")
        self._task, self._seed = task, seed
        self._distillation: tuple[Distillation, Tensor] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, 0))
            self.model = build_model(task, dataset.features.shape[1], dataset.num_classes)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate)
        self._best = (math.inf, 0, copy.deepcopy(self.model.state_dict()))

    def learn_from(self, teacher: "Learner", distillation: Distillation) -> None:
        """Make a teacher's probabilities of the same examples targets too; they are formed once, for all examples."""
        probabilities = soft_probabilities(teacher.logits(self.learning[0]), distillation.softened(teacher.options))
        self._distillation = distillation, probabilities

    def fit(self, num_epochs: int) -> None:
        """Train for ``num_epochs`` and finish."""
        for epoch in range(1, num_epochs + 1):
            self.train_epoch(epoch)
        self.finish()

    def train_epoch(self, epoch: int) -> list[Step]:
        """Pass over the examples in random order; return the steps, none once early stopping has ended the training."""
        if self.stopped_at is not None:
            return []
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, epoch))
            order = torch.randperm(len(self.learning[1]))
            steps = [self.step(batch) for batch in torch.split(order, self._task.batch_size or len(order))]
        if self._task.patience is not None:
            nll = float(classification_nll(*self.predict(self.inner), self.options).nll.mean())
            best, best_epoch, _ = self._best
            if nll < best:
                self._best = (nll, epoch, copy.deepcopy(self.model.state_dict()))
            elif epoch - best_epoch >= self._task.patience:
                self._keep_best()
        return steps

    def step(self, batch: Tensor) -> Step:
        """Take one step of Adam on the (B,) examples that ``batch`` numbers.

        Raises:
            NonFiniteError: the loss became NaN or infinite.
        """
        self._optimizer.zero_grad()
        result = self.objective(self.model(self.learning[0][batch]), batch)
        objective = result.objective
        if self._task.l2:
            objective = objective + self._task.l2 / 2 * self._squared_weights()
        if not torch.isfinite(objective):
            raise NonFiniteError(
                f"task.learning_rate: the loss is no longer finite with {self._task.learning_rate:g}; give a lower one"
            )
        objective.backward()  # type: ignore[no-untyped-call]
        squared_gradient = sum(float(p.grad.square().sum()) for p in self.model.parameters() if p.grad is not None)
        self._optimizer.step()
        return replace(result, objective=objective.detach()), squared_gradient

    def objective(self, logits: Tensor, batch: Tensor) -> NLLResult:
        """Return the mean objective, without the penalty, of the logits of the examples that ``batch`` numbers."""
        targets = self.learning[1][batch]
        hard = classification_nll(logits, targets, self.options)
        if self._distillation is None:
            return hard
        distillation, probabilities = self._distillation
        soft = classification_nll(logits, targets, distillation.softened(self.options), probabilities[batch])
        return distillation.combine(hard, soft)

    def finish(self) -> None:
        """Restore the best weights if early stopping is on, and fit the temperature on the inner split."""
        self._keep_best()
        self.calibration = calibrate(self.predict(self.inner), self.options)

    def _keep_best(self) -> None:
        if self._task.patience is not None and self.stopped_at is None:
            _, self.stopped_at, weights = self._best
            self.model.load_state_dict(weights)

    def weight_norm(self) -> float:
        """Return the Euclidean norm of all weights, without the biases."""
        return float(self._squared_weights().detach().sqrt())

    def _squared_weights(self) -> Tensor:
        return torch.stack([p.square().sum() for p in self.model.parameters() if p.dim() > 1]).sum()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Return (N, V) logits, or (N,) log-odds, without dropout."""
        self.model.eval()
        logits: Tensor = self.model(features)
        return logits

    def predict(self, examples: Examples) -> Scored:
        """Return the logits of examples with their labels."""
        return self.logits(examples[0]), examples[1]
