"""The parts of a cross-validation, and which examples each of them holds."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold, train_test_split

from nanolm.classifiers.datasets import Dataset
from nanolm.config.schema import CrossValidationConfig
from nanolm.errors import DataError
from nanolm.seeds import derive_seed

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fold:
    """The indices of the examples in three disjoint parts: learned from, calibrated on, scored."""

    repeat: int
    number: int
    learning: Indices
    calibration: Indices
    scored: Indices


def make_folds(dataset: Dataset, config: CrossValidationConfig, seed: int) -> list[Fold]:
    """Return stratified folds, drawn anew for each repeat.

    Raises:
        DataError: a class has too few examples to be in every part.
    """
    labels, num_folds = dataset.labels, config.folds
    counts = np.bincount(labels, minlength=dataset.num_classes)
    smallest = int(counts.argmin())
    needed = max(num_folds, math.ceil(2 * num_folds / (num_folds - 1)))  # at least 2 in the training folds
    if counts[smallest] < needed:
        raise DataError(
            f"{dataset.name}: cross_validation.folds={num_folds}: expected at least {needed} examples of each class, "
            f"found {counts[smallest]} of {dataset.class_names[smallest]!r}; merge rare classes, or lower the folds"
        )
    num_training = len(labels) - math.ceil(len(labels) / num_folds)
    num_calibrating = math.ceil(config.calibration_fraction * num_training)
    num_learning = num_training - num_calibrating
    if min(num_calibrating, num_learning) < dataset.num_classes:
        raise DataError(
            f"cross_validation.calibration_fraction={config.calibration_fraction:g}: expected an example of each of "
            f"{dataset.num_classes} classes on either side, found {num_learning} to learn from, {num_calibrating} to "
            "calibrate on; choose another fraction"
        )
    found = []
    for repeat in range(config.repeats):
        state = derive_seed(seed, repeat) % 2**32  # what scikit-learn takes
        splitter = StratifiedKFold(num_folds, shuffle=True, random_state=state)
        for number, (training, scored) in enumerate(splitter.split(labels, labels)):
            learning, calibration = train_test_split(
                training, test_size=num_calibrating, stratify=labels[training], random_state=state
            )
            found.append(Fold(repeat, number, np.sort(learning), np.sort(calibration), scored))
    return found
