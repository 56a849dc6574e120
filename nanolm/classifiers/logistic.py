"""Logistic regression from its likelihood, in plain NumPy: nothing between the formula and the numbers.

With z = Xw + b and ŷ = σ(z), the probability of class 1, the mean negative log-likelihood of labels y in {0, 1} is

    NLL = -1/N Σ [y ln ŷ + (1-y) ln(1-ŷ)] = 1/N Σ [max(z, 0) - zy + ln(1 + exp(-|z|))]

The second form takes no logarithm of a probability that may have been rounded to 0 or 1. Its derivative in z is ŷ - y,
so that ∂NLL/∂w = Xᵀ(ŷ - y)/N and ∂NLL/∂b = mean(ŷ - y). The problem is convex; where a plane separates the classes it
has no minimum: the weights grow for as long as one trains. An L2 penalty gives it one.
"""

from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def sigmoid(z: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-z)), by exponentials of negative numbers alone, which cannot overflow."""
    z = np.asarray(z, dtype=np.float64)
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


class LogisticRegressionNLL:
    """A binary classifier fitted by gradient descent on the mean negative log-likelihood.

    Attributes:
        weights: (F,) coefficients, 0 at first.
        bias: the intercept, 0 at first.
    """

    def __init__(self, n_features: int) -> None:
        self.weights: Floats = np.zeros(n_features)
        self.bias = 0.0

    def logits(self, X: Floats) -> Floats:
        """(N,) log-odds of class 1 for (N, F) features."""
        return np.asarray(X @ self.weights + self.bias)

    def predict_proba(self, X: Floats) -> Floats:
        """(N,) probabilities of class 1 for (N, F) features."""
        return sigmoid(self.logits(X))

    def predict(self, X: Floats, threshold: float = 0.5) -> npt.NDArray[np.int64]:
        """(N,) classes: 1 where the probability is the threshold or more."""
        return (self.predict_proba(X) >= threshold).astype(np.int64)

    def nll(self, X: Floats, y: npt.ArrayLike) -> float:
        """Mean negative log-likelihood in nats of (N,) labels 0 and 1; finite however sure and wrong the model is."""
        z, y = self.logits(X), np.asarray(y, dtype=np.float64)
        return float(np.mean(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))))

    def gradient(self, X: Floats, y: npt.ArrayLike, l2: float = 0.0) -> tuple[Floats, float]:
        """Derivatives of NLL + l2/2 |w|² in the (F,) weights and in the bias, which no penalty holds."""
        error = self.predict_proba(X) - np.asarray(y, dtype=np.float64)  # dNLL_i/dz_i
        return X.T @ error / len(error) + l2 * self.weights, float(error.mean())

    def fit(self, X: Floats, y: npt.ArrayLike, lr: float = 0.1, epochs: int = 1000, l2: float = 0.0) -> Self:
        """Take ``epochs`` steps of gradient descent on all of the data; a second call goes on from the first.

        Args:
            X: (N, F) features, standardised best: the curvature is at most a quarter of their largest eigenvalue.
            y: (N,) or (N, 1) labels 0 and 1.
            lr: step size.
            epochs: number of steps.
            l2: weight of the penalty l2/2 |w|²; scikit-learn's C is 1 / (N l2).
        """
        y = np.asarray(y, dtype=np.float64).reshape(-1)
        for _ in range(epochs):
            weights, bias = self.gradient(X, y, l2)
            self.weights = self.weights - lr * weights
            self.bias -= lr * bias
        return self
