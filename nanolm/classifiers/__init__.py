"""Classification tasks by the same loss, and measured by the same figures, as a language model.

``LogisticRegressionNLL`` is maximum likelihood in plain NumPy, to be read beside ``LogisticRegressionTorch``, the same
model on ``nanolm.loss.bernoulli_nll``. ``run_baseline`` is what ``scripts/baseline.py`` calls.
"""

from nanolm.classifiers.classifier import Classifier, LogisticRegressionTorch
from nanolm.classifiers.cross_validation import CrossValidation, make_folds
from nanolm.classifiers.datasets import Dataset, load_dataset
from nanolm.classifiers.logistic import LogisticRegressionNLL
from nanolm.classifiers.run import run_baseline
from nanolm.classifiers.separation import study_separation

__all__ = [
    "Classifier",
    "CrossValidation",
    "Dataset",
    "LogisticRegressionNLL",
    "LogisticRegressionTorch",
    "load_dataset",
    "make_folds",
    "run_baseline",
    "study_separation",
]
