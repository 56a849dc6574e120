"""From the probability of a dataset to the training of a language model, each identity computed as it is stated.

Each module holds one part of the path as functions that return a ``Step``. ``run_first_principles`` is what
``scripts/first_principles.py`` calls. The two classes of logistic regression can be used on their own.
"""

from nanolm.lessons.logistic import LogisticRegressionNLL, LogisticRegressionTorch
from nanolm.lessons.run import run_first_principles
from nanolm.lessons.step import Step

__all__ = ["LogisticRegressionNLL", "LogisticRegressionTorch", "Step", "run_first_principles"]
