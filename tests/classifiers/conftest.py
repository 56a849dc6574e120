"""Small configurations and datasets of classification tasks."""

import numpy as np
import pytest

from nanolm.classifiers import CrossValidation, Dataset
from nanolm.config import load

TINY = [
    "task.epochs=8",
    "task.eval_every=4",
    "cross_validation.repeats=2",
    "cross_validation.folds=3",
    "separation.epochs=null",
    "wandb.mode=disabled",
]


@pytest.fixture
def tiny_baseline():
    """``tiny_baseline("task=softmax", …)``: the configuration of a short run, with overrides."""
    return lambda *overrides: load("baseline", [*TINY, *overrides])


@pytest.fixture
def trained(tiny_baseline):
    """``trained(dataset, "task=softmax", …)``: a finished cross-validation, and the metrics of each of its epochs."""

    def train(dataset, *overrides):
        config = tiny_baseline(*overrides)
        validation = CrossValidation(dataset, config)
        lines = [validation.train_epoch(epoch)[1] for epoch in range(1, config.task.epochs + 1)]
        validation.finish()
        return validation, lines

    return train


@pytest.fixture
def overlapping():
    """Three classes on four features that overlap, so that nothing diverges."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 50, 60])
    features = generator.normal(size=(150, 4)) + 1.2 * np.eye(3, 4)[labels]
    return Dataset("three", features, labels, ("a", "b", "c", "d"), ("x", "y", "z"))


@pytest.fixture
def two_classes():
    """Labels drawn from a logistic model of known weights."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(600, 3))
    odds = features @ np.array([1.5, -1.0, 0.5])
    labels = (generator.uniform(size=600) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    return Dataset("two", features, labels, ("a", "b", "c"), ("no", "yes"))
