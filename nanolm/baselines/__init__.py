"""Classification tasks by the same loss, and measured by the same figures, as a language model.

``LogisticRegressionNLL`` is maximum likelihood in plain NumPy, to be read beside ``LogisticRegressionTorch``, the same
model on ``nanolm.loss.bernoulli_nll``. ``run_baseline`` is what ``scripts/baseline.py`` calls.
"""

from nanolm.baselines.classifier import Classifier, LogisticRegressionTorch
from nanolm.baselines.cross_validation import CrossValidation, make_folds
from nanolm.baselines.datasets import Dataset, load_dataset
from nanolm.baselines.logistic import LogisticRegressionNLL
from nanolm.baselines.run import run_baseline
from nanolm.baselines.separation import study_separation

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
