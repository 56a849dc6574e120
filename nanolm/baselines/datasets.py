"""The examples: bundled with scikit-learn, or a CSV file of the user's own."""

import csv
import hashlib
import math
import reprlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_digits

from nanolm.config.nearest import did_you_mean
from nanolm.config.schema_baseline import TaskConfig
from nanolm.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Examples with the names that a person knows them by."""

    name: str
    features: npt.NDArray[np.float64]
    """(N, F)"""
    labels: npt.NDArray[np.int64]
    """(N,) in [0, V)"""
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """V."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all features and labels: equal ones are equal data in the same order."""
        return hashlib.sha256(self.features.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)


def load_dataset(task: TaskConfig) -> Dataset:
    """The examples of a task: its CSV file if it names one, else breast cancer or digits.

    Raises:
        DataError: the file is not a table of numbers and classes that fit the task.
    """
    if task.path is not None:
        assert task.target is not None, "validated"
        dataset = read_csv(Path(task.path), task.target)
        if task.name == "binary" and dataset.num_classes != 2:
            raise DataError(
                f"{task.path}: task=binary expects 2 classes in column {task.target!r}, found {dataset.num_classes}; "
                "use task=softmax"
            )
        return dataset
    bundled = load_breast_cancer() if task.name == "binary" else load_digits()
    return Dataset(
        name="breast cancer" if task.name == "binary" else "digits",
        features=np.asarray(bundled.data, dtype=np.float64),
        labels=np.asarray(bundled.target, dtype=np.int64),
        feature_names=tuple(str(name) for name in bundled.feature_names),
        class_names=tuple(str(name) for name in bundled.target_names),
    )


def read_csv(path: Path, target: str) -> Dataset:
    """A table with a header, commas between its columns, and one example a row.

    Every column but ``target`` is a feature and holds finite numbers alone. Classes are any texts, in the order of
    their numbers where all are numbers, else of the alphabet.

    Raises:
        DataError: naming the row and the column of what is wrong.
    """
    header, rows = _read_table(path)
    if target not in header:
        near = did_you_mean(target, header) or f"; its columns, between commas, are {reprlib.repr(header)}"
        raise DataError(f"{path}: task.target: expected a column of the header, found {target!r}{near}")
    place = header.index(target)
    names = tuple(name for name in header if name != target)
    if not names:
        raise DataError(f"{path}: expected features beside the column {target!r}, found no other column")
    features = np.empty((len(rows), len(names)))
    answers = []
    for index, (number, row) in enumerate(rows):
        answers.append(row[place].strip())
        if answers[-1].lower() in ("", "nan"):
            raise DataError(f"{path}, row {number}, column {target!r}: expected a class, found {row[place]!r}")
        for column, (name, cell) in enumerate(zip(names, row[:place] + row[place + 1 :], strict=True)):
            features[index, column] = _number(cell, path, number, name)
    classes = _sorted_classes(set(answers))
    if len(classes) < 2:
        raise DataError(f"{path}: expected at least 2 classes in column {target!r}, found {_classes_in_words(classes)}")
    indices = {name: index for index, name in enumerate(classes)}
    return Dataset(path.name, features, np.array([indices[answer] for answer in answers]), names, tuple(classes))


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row that is not empty with the number of its line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    if not header or not rows:
        raise DataError(f"{path}: expected a header and one example a row, found {len(rows)} rows")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}: expected a name of its own for each column, found {twice[0]!r} more than once")
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: expected {len(header)} cells, as in the header, found {len(row)}")
    return header, rows


def _number(cell: str, path: Path, row: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found = f"{cell!r}" if cell.strip() else "an empty cell"
        raise DataError(
            f"{path}, row {row}, column {column!r}: expected a finite number, found {found}; features are numbers "
            "without gaps: fill or remove such rows, encode or remove such columns"
        )
    return value


def _sorted_classes(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _classes_in_words(classes: list[str]) -> str:
    return f"only {classes[0]!r}" if classes else "none"
