"""One classifier being fitted, epoch by epoch: standardised features, Adam, early stopping where it is asked for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from nanolm.classifiers.classifier import Classifier, classification_nll
from nanolm.classifiers.datasets import Dataset
from nanolm.config.schema import LossConfig
from nanolm.config.schema_baseline import TaskConfig
from nanolm.errors import NonFiniteError
from nanolm.loss import LossOptions, NLLResult
from nanolm.metrics import GroupedMeter
from nanolm.seeds import derive_seed

Indices = npt.NDArray[np.int64]

# The logits of a batch and the numbers of its examples to their mean objective.
Objective = Callable[[Tensor, Tensor], NLLResult]


def loss_options(loss: LossConfig) -> LossOptions:
    """The options of the objective that training minimises."""
    return LossOptions(
        label_smoothing=loss.label_smoothing, z_loss=loss.z_loss, softcap=loss.softcap, temperature=loss.temperature
    )


def likelihood(targets: Tensor, options: LossOptions) -> Objective:
    """The mean objective of a batch whose (N,) targets are classes."""
    return lambda logits, batch: classification_nll(logits, targets[batch], options)


class Examples:
    """Parts of a dataset as tensors; features are standardised by the mean and deviation of one part alone."""

    def __init__(self, dataset: Dataset, fitted_on: Indices) -> None:
        """``fitted_on``: the examples that a model learns from, and so all that its scale may know."""
        self._dataset = dataset
        self._scaler = StandardScaler().fit(dataset.features[fitted_on])

    def __call__(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """(N, F) features and (N,) labels of these examples."""
        features = self._scaler.transform(self._dataset.features[indices])
        return torch.from_numpy(features), torch.from_numpy(self._dataset.labels[indices])


@dataclass
class EpochSums:
    """What one epoch adds up over its steps, and several learners over theirs."""

    meter: GroupedMeter
    objective: float = 0.0
    """sum over examples, in nats"""
    squared_gradient: float = 0.0
    """sum over steps of the gradient's squared norm"""
    num_steps: int = 0


class Learner:
    """A model, its optimizer, and the part of the examples that it learns from.

    Every random number of epoch e is a function of the seed and e: learners may take their turns in any order.
    """

    def __init__(
        self,
        task: TaskConfig,
        num_classes: int,
        learning: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        options: LossOptions,
        seed: int,
    ) -> None:
        """``validation``: held out from learning; early stopping watches its NLL."""
        self.features, self.targets = learning
        self.num_classes = num_classes
        self.options = options
        self.objective = likelihood(self.targets, options)
        self._task, self._validation, self._seed = task, validation, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, 0))
            self.model = Classifier(
                num_features=self.features.shape[1],
                num_classes=None if task.name == "binary" else num_classes,
                hidden_size=task.hidden_size if task.model == "mlp" else None,
                dropout=task.dropout,
            )
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=task.learning_rate)
        self._best = (float("inf"), 0, copy.deepcopy(self.model.state_dict()))
        self.stopped_at: int | None = None
        """the epoch whose weights are kept, once early stopping has ended the training"""

    def train_epoch(self, epoch: int, sums: EpochSums) -> None:
        """One pass over the examples in an order of its own; nothing once early stopping has ended the training.

        Raises:
            NonFiniteError: the loss became NaN or infinite.
        """
        if self.stopped_at is not None:
            return
        self.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self._seed, epoch))
            order = torch.randperm(len(self.targets))
            for batch in torch.split(order, self._task.batch_size or len(order)):
                self._step(batch, sums)
        if self._task.patience is not None:
            self._watch(epoch, self._task.patience)

    def _step(self, batch: Tensor, sums: EpochSums) -> None:
        result, objective, squared_gradient = self.step(batch)
        sums.squared_gradient += squared_gradient
        sums.num_steps += 1
        sums.objective += objective * len(batch)
        sums.meter.update(result)

    def step(self, batch: Tensor) -> tuple[NLLResult, float, float]:
        """Take one step on the examples of these numbers.

        Returns:
            the result before the step, the objective with its penalty (nats), and the squared norm of its gradient.

        Raises:
            NonFiniteError: the loss became NaN or infinite.
        """
        self._optimizer.zero_grad()
        result = self.objective(self.model(self.features[batch]), batch)
        objective = self.model.penalised(result, self._task.l2)
        if not torch.isfinite(objective):
            raise NonFiniteError(
                f"task.learning_rate: the loss is no longer finite with {self._task.learning_rate:g}; give a lower one"
            )
        objective.backward()  # type: ignore[no-untyped-call]
        squared_gradient = sum(float(p.grad.square().sum()) for p in self.model.parameters() if p.grad is not None)
        self._optimizer.step()
        return result, float(objective.detach()), squared_gradient

    def _watch(self, epoch: int, patience: int) -> None:
        features, targets = self._validation
        nll = float(classification_nll(self.logits(features), targets, self.scoring).nll.mean())
        best, best_epoch, weights = self._best
        if nll < best:
            self._best = (nll, epoch, copy.deepcopy(self.model.state_dict()))
        elif epoch - best_epoch >= patience:
            self.model.load_state_dict(weights)
            self.stopped_at = best_epoch

    def finish(self) -> None:
        """Keep the best weights that early stopping has seen, where it is on and has not come to its end."""
        if self._task.patience is not None and self.stopped_at is None:
            _, self.stopped_at, weights = self._best
            self.model.load_state_dict(weights)

    @property
    def scoring(self) -> LossOptions:
        """Softcap and temperature belong to the model; smoothing and z-loss play no part in an NLL."""
        return LossOptions(softcap=self.options.softcap, temperature=self.options.temperature)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(N, V) logits, or (N,) log-odds, without dropout."""
        self.model.eval()
        logits: Tensor = self.model(features)
        return logits
