"""Finished runs below a folder: their configuration, their evaluation, their sums over documents."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanolm.config import dotted
from nanolm.errors import DataError, sentence
from nanolm.files import read_record
from nanolm.metrics import Evaluation, read_units
from nanolm.metrics.definitions import of_rows
from nanolm.metrics.intervals import Floats

CONFIG = "config.yaml"


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run; two are equal only if they are the same object.

    Attributes:
        settings: every key of its configuration by its dotted name.
        evaluation: of the split that is compared.
        units: (U, WIDTH) sums over documents or blocks, see ``nanolm.metrics.tally``; None if the file is missing or
            belongs to another evaluation.
        on_train: its evaluation of the training text, if it has one.
    """

    path: Path
    settings: dict[str, Any]
    evaluation: Evaluation
    units: Floats | None
    blocks: bool = False
    on_train: Evaluation | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings["seed"])


def values_of(runs: Sequence[Run], metric: str) -> list[float]:
    """Return the finite values of a metric among the runs."""
    return [value for run in runs if (value := run.evaluation.value(metric)) is not None]


def find_runs(folder: Path, split: str = "val") -> tuple[list[Run], list[Path]]:
    """Return the finished runs below a folder and the paths of the others, both in natural order (run 10 after 9).

    A run is a directory with the ``config.yaml`` of a training or a classifier. It is finished if it has the evaluation
    of the split.

    Raises:
        DataError: there is no run, none is finished, or a file of one is damaged.
    """
    inner = {"checkpoints", "wandb"}  # what lies in these is part of a run
    places = [path.parent for path in folder.rglob(CONFIG) if not inner & set(path.relative_to(folder).parts[:-1])]
    places.sort(key=lambda place: _natural_order(str(place.relative_to(folder))))
    name = "evaluation.json" if split == "val" else f"evaluation-{split}.json"
    found, unfinished = [], []
    for place in places:
        settings = _read_settings(place / CONFIG)
        if not any(key.startswith(("trainer.", "task.")) for key in settings):
            continue  # of another script
        if not (place / name).is_file():
            unfinished.append(place)
            continue
        evaluation, on_train = _read_evaluation(place / name), place / "evaluation-train.json"
        units, blocks = _read_units(place / f"documents-{split}.npz", evaluation)
        train = _read_evaluation(on_train) if on_train.is_file() else None
        found.append(Run(place, settings, evaluation, units, blocks, train))
    if not found:
        hint = "finish them" if split == "val" else f"run scripts/evaluate.py split={split}"
        others = f"{len(unfinished)} without {name}; {hint}" if unfinished else "no run at all"
        raise DataError(f"runs={folder}: expected finished runs below this folder, found {others}")
    return found, unfinished


def _natural_order(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("seed"), int):
        raise DataError(f"{path}: expected the configuration of a run, with its seed")
    return dict(dotted(content))


def _read_evaluation(path: Path) -> Evaluation:
    try:
        return read_record(path, Evaluation, DataError)
    except DataError as error:
        raise DataError(f"{sentence(error)} Evaluate the run again.") from None


def _read_units(path: Path, evaluation: Evaluation) -> tuple[Floats | None, bool]:
    """Return the sums, or None if another evaluation (such as one with another stride) wrote them; are they blocks?"""
    if not path.is_file():
        return None, False
    units, blocks = read_units(path)
    nll, of_sums = evaluation.value("nll"), of_rows(units.sum(axis=0)).get("nll")
    fits = nll is not None and of_sums is not None and math.isclose(of_sums, nll, rel_tol=1e-9)
    return (units if fits else None), blocks
