"""The classifiers in torch, and the losses of ``nanolm.loss`` at work on them."""

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nanolm.classifiers.logistic import Floats
from nanolm.loss import LossOptions, NLLResult, bernoulli_nll, softmax_nll
from nanolm.loss.options import Reduction


class Classifier(nn.Module):
    """Features to logits, in float64: linear, or with one hidden layer of rectified units.

    A binary task has one logit, the log-odds of class 1. A linear model begins at 0, where every class is as likely:
    its problem is convex, so where it begins does not matter. A hidden layer needs torch's random beginning.
    """

    def __init__(
        self, num_features: int, num_classes: int | None, hidden_size: int | None = None, dropout: float = 0.0
    ) -> None:
        """``num_classes``: None for a binary task with its one logit; ``hidden_size``: None for a linear model."""
        super().__init__()
        num_logits = num_classes or 1
        self.is_binary = num_classes is None
        if hidden_size is None:
            linear = nn.Linear(num_features, num_logits, dtype=torch.float64)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.layers = nn.Sequential(linear)
        else:
            self.layers = nn.Sequential(
                nn.Linear(num_features, hidden_size, dtype=torch.float64),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_size, num_logits, dtype=torch.float64),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) features to (N, V) logits, or (N,) log-odds of a binary task."""
        logits: Tensor = self.layers(features)
        return logits.squeeze(1) if self.is_binary else logits

    def squared_weights(self) -> Tensor:
        """Σ w² over all weights, biases left out."""
        return torch.stack([p.square().sum() for p in self.parameters() if p.dim() > 1]).sum()

    def penalised(self, result: NLLResult, l2: float) -> Tensor:
        """The mean objective of a result plus l2/2 |weights|²."""
        return result.objective + l2 / 2 * self.squared_weights() if l2 else result.objective

    def weight_norm(self) -> float:
        """The Euclidean norm of all weights."""
        return float(self.squared_weights().detach().sqrt())


def classification_nll(
    logits: Tensor,
    targets: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    reduction: Reduction = "mean",
    soft_targets: Tensor | None = None,
) -> NLLResult:
    """``bernoulli_nll`` of (N,) log-odds, ``softmax_nll`` of (N, V) logits.

    soft_targets: (N,) probabilities of class 1, or (N, V), that take the classes' place in the objective
    """
    if logits.dim() == 1:
        return bernoulli_nll(logits, targets if soft_targets is None else soft_targets, options, reduction)
    return softmax_nll(logits, targets, soft_targets, options, reduction)


def as_softmax_logits(logits: Tensor) -> Tensor:
    """(N, V) logits as they are; (N,) log-odds as [0, z]."""
    return logits if logits.dim() == 2 else torch.stack([torch.zeros_like(logits), logits], dim=1)


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) logit of the right class less the largest of the others: above 0 where the model is right."""
    logits = as_softmax_logits(logits)
    right = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return right.squeeze(1) - others.amax(dim=1)


class LogisticRegressionTorch:
    """``LogisticRegressionNLL`` with ``bernoulli_nll`` and autograd in place of the formulas."""

    def __init__(self, n_features: int) -> None:
        self.model = Classifier(n_features, None)

    @property
    def weights(self) -> Floats:
        """(F,) coefficients."""
        weights: Floats = self._linear.weight.detach().numpy()[0]
        return weights

    @property
    def bias(self) -> float:
        """The intercept."""
        return float(self._linear.bias.detach())

    @property
    def _linear(self) -> nn.Linear:
        linear = self.model.layers[0]
        assert isinstance(linear, nn.Linear)
        return linear

    def fit(
        self,
        X: Floats,
        y: npt.ArrayLike,
        lr: float = 0.1,
        epochs: int = 1000,
        l2: float = 0.0,
        options: LossOptions = LossOptions(),  # noqa: B008  (frozen)
    ) -> Self:
        """As ``LogisticRegressionNLL.fit``, with the options of the loss besides."""
        features, targets = torch.from_numpy(X), torch.from_numpy(np.asarray(y).reshape(-1))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        for _ in range(epochs):
            optimizer.zero_grad()
            result = bernoulli_nll(self.model(features), targets, options, reduction="mean")
            self.model.penalised(result, l2).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self

    @torch.no_grad()
    def predict_proba(self, X: Floats) -> Floats:
        """(N,) probabilities of class 1."""
        probabilities: Floats = self.model(torch.from_numpy(X)).sigmoid().numpy()
        return probabilities

    def predict(self, X: Floats, threshold: float = 0.5) -> npt.NDArray[np.int64]:
        """(N,) classes: 1 where the probability is the threshold or more."""
        return (self.predict_proba(X) >= threshold).astype(np.int64)
