"""The examples: bundled with scikit-learn, or a CSV file of the user's own."""

import contextlib
import csv
import hashlib
import logging
import math
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_digits

from nanolm.config.nearest import did_you_mean
from nanolm.config.schema_baseline import TaskConfig
from nanolm.data.encoding import HEAD_BYTES, unmarked_wide_encoding, what_to_do
from nanolm.errors import DataError

FEWEST_ROWS = 5
"""With fewer, a feature counts the rows or orders the classes by chance."""
_NAMELESS = re.compile(r"|Unnamed: \d+(\.\d+)*")  # an index in a file of pandas, and one that was read back and written

logger = logging.getLogger(__name__)


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

    Every column but ``target`` is a feature and holds finite numbers alone. An index, which is a column without a name
    or one that counts the rows, is left out with a warning: in a table sorted by class it gives the class away. A
    feature that orders the classes perfectly is kept with a warning. Classes are any texts, in the order of their
    numbers where all are numbers, else of the alphabet.

    Raises:
        DataError: naming the row and the column of what is wrong.
    """
    header, rows = _read_table(path)
    if target not in header:
        near = did_you_mean(target, header) or f"; its columns, between commas, are {reprlib.repr(header)}"
        raise DataError(f"{path}: task.target: expected a column of the header, found {target!r}{near}")
    place = header.index(target)
    named = [column for column, name in enumerate(header) if column != place and not _NAMELESS.fullmatch(name)]
    features = np.empty((len(rows), len(named)))
    answers = []
    for index, (number, row) in enumerate(rows):
        answers.append(row[place].strip())
        if answers[-1].lower() in ("", "nan"):
            raise DataError(f"{path}, row {number}, column {target!r}: expected a class, found {row[place]!r}")
        for feature, column in enumerate(named):
            features[index, feature] = _number(row[column], path, number, header[column])
    classes = _sorted_classes(set(answers), f"{path}, column {target!r}")
    if len(classes) < 2:
        raise DataError(f"{path}: expected at least 2 classes in column {target!r}, found {_classes_in_words(classes)}")
    indices = {name: index for index, name in enumerate(classes)}
    labels = np.array([indices[answer] for answer in answers])
    is_index = _counts_rows(features)
    if is_index.all():  # there is nothing else to learn from
        is_index[:] = False
    names = tuple(header[column] for column in named)
    left_out = [name for name in header if _NAMELESS.fullmatch(name) and name != target] + _those(names, is_index)
    if left_out:
        logger.warning("%s: left out as an index of the rows, not a feature: %s", path, _listed(left_out))
    features, names = features[:, ~is_index], tuple(_those(names, ~is_index))
    if not names:
        raise DataError(f"{path}: expected features beside the column {target!r}, found no other column")
    if telling := _those(names, _orders_classes(features, labels, len(classes))):
        logger.warning(
            "%s: each of these columns alone orders the classes of %r without an error: %s; remove what is not known "
            "before the class is",
            *(path, target, _listed(telling)),
        )
    return Dataset(path.name, features, labels, names, tuple(classes))


def _counts_rows(features: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(F,) whether a feature is 0, 1, 2, … or 1, 2, 3, … in the order of the rows."""
    if len(features) < FEWEST_ROWS:
        return np.zeros(features.shape[1], bool)
    number = np.arange(len(features))[:, None]
    return np.asarray((features == number).all(axis=0) | (features == number + 1).all(axis=0))


def _orders_classes(
    features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], num_classes: int
) -> npt.NDArray[np.bool_]:
    """(F,) whether the classes' values of a feature lie in ranges that do not touch; it may equal the class."""
    if len(labels) < max(FEWEST_ROWS, 2 * num_classes):  # by chance
        return np.zeros(features.shape[1], bool)
    low, high = (np.full((num_classes, features.shape[1]), end) for end in (np.inf, -np.inf))
    np.minimum.at(low, labels, features)
    np.maximum.at(high, labels, features)
    order = low.argsort(axis=0)
    low, high = (np.take_along_axis(ends, order, axis=0) for ends in (low, high))
    return np.asarray((high[:-1] < low[1:]).all(axis=0))


def _those(names: Sequence[str], chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) if name else "a column without a name" for name in names)


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row that is not empty with the number of its line."""
    head = b""
    try:
        with open(path, "rb") as binary:
            head = binary.read(HEAD_BYTES)
        if unmarked_wide_encoding(head):
            raise UnicodeError("its bytes are those of UTF-16 or UTF-32")
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeError as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}. {what_to_do(head)}") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}") from error
    if not header or not rows:
        raise DataError(f"{path}: expected a header and one example a row, found {len(rows)} rows")
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
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


def _sorted_classes(names: set[str], where: str) -> list[str]:
    spellings: dict[float, str] = {}
    for name in sorted(names):
        with contextlib.suppress(ValueError):
            other = spellings.setdefault(float(name), name)
            if other != name:
                raise DataError(f"{where}: the classes {other!r} and {name!r} are one number; write it in one way")
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def _classes_in_words(classes: list[str]) -> str:
    return f"only {classes[0]!r}" if classes else "none"
