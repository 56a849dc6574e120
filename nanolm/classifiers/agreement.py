"""One optimum, found three ways: gradient descent in NumPy and in torch, and scikit-learn's own solver."""

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nanolm.classifiers.classifier import LogisticRegressionTorch
from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.logistic import Floats, LogisticRegressionNLL

Labels = npt.NDArray[np.int64]

NUM_STEPS = 4000


def three_ways(dataset: Dataset, l2: float) -> list[dict[str, Any]]:
    """Fit a binary dataset three ways: its first two features without a penalty, and all features with one.

    The first problem has an optimum only where the two features overlap in class; it is left out where they separate.

    Returns:
        rows of ``problem``, ``by``, ``nll`` (mean, in nats), ``weight_norm``, ``bias``, and ``distance``: the largest
        difference of a weight or the bias from scikit-learn's.
    """
    features = StandardScaler().fit_transform(dataset.features)
    rows = _rows(f"all {features.shape[1]} features, l2 = {l2:g}", features, dataset.labels, l2)
    if features.shape[1] > 2 and not _separates(features[:, :2], dataset.labels):
        rows = _rows("the first 2 features, no penalty", features[:, :2], dataset.labels, 0.0) + rows
    return rows


def _rows(problem: str, X: Floats, y: Labels, l2: float) -> list[dict[str, Any]]:
    lipschitz = np.linalg.eigvalsh(X.T @ X / len(X)).max() / 4 + l2
    rate = 1.0 / max(float(lipschitz), 0.25)  # the bias alone has curvature 1/4
    theirs = _scikit_learn(X, y, l2)
    ours = LogisticRegressionNLL(X.shape[1]).fit(X, y, rate, NUM_STEPS, l2)
    in_torch = LogisticRegressionTorch(X.shape[1]).fit(X, y, rate, NUM_STEPS, l2)
    found = {"NumPy": (ours.weights, ours.bias), "torch": (in_torch.weights, in_torch.bias), "scikit-learn": theirs}
    return [
        {
            "problem": problem,
            "by": name,
            "nll": _nll(X, y, weights, bias),
            "weight_norm": float(np.linalg.norm(weights)),
            "bias": bias,
            "distance": None
            if name == "scikit-learn"
            else float(max(np.abs(weights - theirs[0]).max(), abs(bias - theirs[1]))),
        }
        for name, (weights, bias) in found.items()
    ]


def _scikit_learn(X: Floats, y: Labels, l2: float) -> tuple[Floats, float]:
    model = LogisticRegression(C=1 / (len(X) * l2) if l2 else np.inf, tol=1e-10, max_iter=10_000).fit(X, y)
    return model.coef_[0], float(model.intercept_[0])


def _separates(X: Floats, y: Labels) -> bool:
    """Whether a plane tells the classes apart, judged by a fit that is hardly penalised."""
    return bool(LogisticRegression(C=1e6, max_iter=10_000).fit(X, y).score(X, y) == 1)


def _nll(X: Floats, y: Labels, weights: Floats, bias: float) -> float:
    model = LogisticRegressionNLL(X.shape[1])
    model.weights, model.bias = weights, bias
    return model.nll(X, y)
