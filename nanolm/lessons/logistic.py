"""Logistic regression from its likelihood: by formulas in NumPy, and by ``bernoulli_nll`` and autograd in torch.

With z = Xw + b and ŷ = σ(z), the probability of class 1, the mean negative log-likelihood of labels y in {0, 1} is

    NLL = -1/N Σ [y ln ŷ + (1-y) ln(1-ŷ)] = 1/N Σ [max(z, 0) - zy + ln(1 + exp(-|z|))]

The second form takes no logarithm of a probability that may have been rounded to 0 or 1. Its derivative in z is ŷ - y,
so ∂NLL/∂w = Xᵀ(ŷ - y)/N and ∂NLL/∂b = mean(ŷ - y). The problem is convex. Where a plane separates the classes it has
no minimum, and the weights grow for as long as one trains; an L2 penalty gives it one.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nanolm.loss import LossOptions, bernoulli_nll
from nanolm.loss import reference as exact
from nanolm.loss.reference import Array


class LogisticRegressionNLL:
    """A binary classifier fitted by gradient descent on the mean negative log-likelihood.

    Attributes:
        weights: (F,) coefficients, initially 0.
        bias: the intercept, initially 0.
    """

    def __init__(self, n_features: int) -> None:
        self.weights: Array = np.zeros(n_features)
        self.bias = 0.0

    def logits(self, X: Array) -> Array:
        """Return the (N,) log-odds of class 1 for (N, F) features."""
        return np.asarray(X @ self.weights + self.bias)

    def predict_proba(self, X: Array) -> Array:
        """Return the (N,) probabilities of class 1 for (N, F) features."""
        return exact.sigmoid(self.logits(X))

    def predict(self, X: Array, threshold: float = 0.5) -> NDArray[np.int64]:
        """Return (N,) classes: 1 where the probability is at least the threshold."""
        return (self.predict_proba(X) >= threshold).astype(np.int64)

    def nll(self, X: Array, y: ArrayLike) -> float:
        """Return the mean negative log-likelihood in nats of (N,) labels; finite even for a confident mistake."""
        return exact.binary_nll_from_logits(y, self.logits(X))

    def gradient(self, X: Array, y: ArrayLike, l2: float = 0.0) -> tuple[Array, float]:
        """Return the derivatives of NLL + l2/2 |w|² in the (F,) weights and in the bias, which is not penalised."""
        error = self.predict_proba(X) - np.asarray(y)  # ∂NLL_i/∂z_i
        return X.T @ error / len(error) + l2 * self.weights, float(error.mean())

    def fit(self, X: Array, y: ArrayLike, lr: float = 0.1, epochs: int = 1000, l2: float = 0.0) -> Self:
        """Take ``epochs`` steps of gradient descent on all of the data; a second call continues the first.

        Args:
            X: (N, F) features, preferably standardised.
            y: (N,) or (N, 1) labels 0 and 1.
            lr: step size; the curvature of the NLL is at most a quarter of the largest eigenvalue of XᵀX/N.
            epochs: number of steps.
            l2: weight of the penalty l2/2 |w|²; scikit-learn's C is 1 / (N l2).
        """
        y = np.asarray(y).reshape(-1)
        for _ in range(epochs):
            weights, bias = self.gradient(X, y, l2)
            self.weights = self.weights - lr * weights
            self.bias -= lr * bias
        return self


class LogisticRegressionTorch(LogisticRegressionNLL):
    """The same model with its gradient from ``bernoulli_nll``, with its options, and autograd."""

    def __init__(self, n_features: int, options: LossOptions = LossOptions()) -> None:  # noqa: B008  (frozen)
        super().__init__(n_features)
        self.options = options

    def gradient(self, X: Array, y: ArrayLike, l2: float = 0.0) -> tuple[Array, float]:
        """Return the derivatives of the mean objective + l2/2 |w|² in the (F,) weights and in the bias."""
        weights = torch.from_numpy(self.weights).requires_grad_()
        bias = torch.tensor(self.bias, dtype=torch.float64, requires_grad=True)
        logits = torch.from_numpy(X) @ weights + bias
        result = bernoulli_nll(logits, torch.from_numpy(np.asarray(y)), self.options, reduction="mean")
        objective = result.objective + l2 / 2 * weights.square().sum()
        in_weights, in_bias = torch.autograd.grad(objective, (weights, bias))
        return in_weights.numpy(), float(in_bias)
