"""Classification with the loss and the metrics of a language model; ``scripts/baseline.py`` calls ``run_baseline``."""

from nanolm.classifiers.cross_validation import CrossValidation
from nanolm.classifiers.datasets import Dataset, load_dataset
from nanolm.classifiers.evaluation import ClassifierEvaluation
from nanolm.classifiers.folds import make_folds
from nanolm.classifiers.run import run_baseline

__all__ = [
    "ClassifierEvaluation",
    "CrossValidation",
    "Dataset",
    "load_dataset",
    "make_folds",
    "run_baseline",
]
