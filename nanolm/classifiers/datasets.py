"""The examples: bundled with scikit-learn, or a CSV file of the user's own."""

import contextlib
import csv
import hashlib
import io
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_digits

from nanolm.config.nearest import did_you_mean
from nanolm.config.schema import TaskConfig
from nanolm.data.encoding import HEAD_BYTES, unmarked_wide_encoding, what_to_do
from nanolm.errors import DataError

FEWEST_ROWS = 5
"""With fewer, a feature counts the rows or orders the classes by chance."""
_NAMELESS = re.compile(r"|Unnamed: \d+(\.\d+)*")  # how pandas writes an index, once and again

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Examples: (N, F) features and (N,) labels in [0, V), with the names of data, features and classes."""

    name: str
    features: Floats
    labels: Labels
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Return V."""
        return len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of all features and labels in their order."""
        return hashlib.sha256(self.features.tobytes() + self.labels.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)


def load_dataset(task: TaskConfig) -> Dataset:
    """Load the examples of a task: its CSV file if it names one, else breast cancer or digits.

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
        feature_names=tuple(map(str, bundled.feature_names)),
        class_names=tuple(map(str, bundled.target_names)),
    )


def read_csv(path: Path, target: str) -> Dataset:
    """Read a table with a header, commas between its columns, and one example a row.

    Every column but ``target`` is a feature and holds finite numbers alone. An index, which is a column without a name
    or one that counts the rows, is left out with a warning: in a table sorted by class it gives the class away. A
    feature that orders the classes perfectly is kept with a warning. Classes are any texts.

    Raises:
        DataError: naming the row and the column of what is wrong.
    """
    columns, lines = _read_columns(path)
    if target not in columns:
        near = did_you_mean(target, list(columns)) or f"; its columns, between commas, are {list(columns)!r:.300}"
        raise DataError(f"{path}: task.target: expected a column of the header, found {target!r}{near}")
    answers = [cell.strip() for cell in columns.pop(target)]
    for line, answer in zip(lines, answers, strict=True):
        if answer.lower() in ("", "nan"):
            raise DataError(f"{path}, row {line}, column {target!r}: expected a class, found {answer!r}")
    classes = _class_names(answers, f"{path}, column {target!r}")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[answer] for answer in answers])

    named = {name: _numbers(columns[name], lines, path, name) for name in columns if not _NAMELESS.fullmatch(name)}
    features = {name: values for name, values in named.items() if not _counts_rows(values)} or named
    if left_out := [name for name in columns if name not in features]:
        logger.warning("%s: left out as an index of the rows, not a feature: %s", path, _listed(left_out))
    if not features:
        raise DataError(f"{path}: expected feature columns in addition to {target!r}, found none")
    if telling := [name for name, values in features.items() if _orders_classes(values, labels, len(classes))]:
        logger.warning(
            "%s: each of these columns alone orders the classes without an error: %s; remove what is not known before "
            "the class is",
            *(path, _listed(telling)),
        )
    return Dataset(path.name, np.column_stack(list(features.values())), labels, tuple(features), tuple(classes))


def _read_columns(path: Path) -> tuple[dict[str, Sequence[str]], Sequence[int]]:
    """Return the cells of each column by its name, and the line that each row ends at; empty lines are no rows."""
    data = b""
    try:
        data = path.read_bytes()
        if unmarked_wide_encoding(data[:HEAD_BYTES]):
            raise UnicodeError("its bytes are those of UTF-16 or UTF-32")
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, csv.Error, UnicodeError) as error:
        hint = f". {what_to_do(data[:HEAD_BYTES])}" if isinstance(error, UnicodeError) else ""
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}{hint}") from error
    if not header or not rows:
        raise DataError(f"{path}: expected a header and one example a row, found {len(rows)} rows")
    if twice := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise DataError(f"{path}: expected a name of its own for each column, found {twice[0]!r} more than once")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, row {line}: expected {len(header)} cells, as in the header, found {len(row)}")
    lines, cells = zip(*rows, strict=True)
    return dict(zip(header, zip(*cells, strict=True), strict=True)), lines


def _numbers(cells: Sequence[str], lines: Sequence[int], path: Path, column: str) -> Floats:
    values = np.full(len(cells), math.nan)
    for place, cell in enumerate(cells):
        with contextlib.suppress(ValueError):
            values[place] = float(cell)
        if not math.isfinite(values[place]):
            raise DataError(
                f"{path}, row {lines[place]}, column {column!r}: expected a finite number, found {cell!r}; fill or "
                "remove such rows, encode or remove such columns"
            )
    return values


def _class_names(answers: Sequence[str], where: str) -> list[str]:
    """Return the different classes in the order of their numbers, if all are numbers, else of the alphabet."""
    names, spellings = sorted(set(answers)), dict[float, str]()
    for name in names:
        with contextlib.suppress(ValueError):
            if (other := spellings.setdefault(float(name), name)) != name:
                raise DataError(f"{where}: the classes {other!r} and {name!r} are one number; write it in one way")
    if len(names) < 2:
        raise DataError(f"{where}: expected at least 2 classes, found only {names[0]!r}")
    return sorted(names, key=float) if len(spellings) == len(names) else names


def _counts_rows(values: Floats) -> bool:
    """Return whether a feature is 0, 1, 2, … or 1, 2, 3, … in the order of the rows."""
    offset = values - np.arange(len(values))
    return len(values) >= FEWEST_ROWS and bool((offset == 0).all() or (offset == 1).all())


def _orders_classes(values: Floats, labels: Labels, num_classes: int) -> bool:
    """Return whether the classes' values of a feature lie in ranges that do not touch."""
    if len(labels) < max(FEWEST_ROWS, 2 * num_classes):
        return False  # it may be chance
    order = values.argsort(kind="stable")
    changes = np.flatnonzero(np.diff(labels[order]))
    return len(changes) == num_classes - 1 and bool((np.diff(values[order])[changes] > 0).all())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) if name else "a column without a name" for name in names)
