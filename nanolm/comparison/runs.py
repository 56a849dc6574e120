"""Finished runs below a folder: their configuration, their figures, their sums over documents."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanolm.config import dotted
from nanolm.errors import DataError
from nanolm.files import parse_json
from nanolm.metrics.measurement import read_units
from nanolm.metrics.sums import STATISTICS, Array

CONFIG = "config.yaml"


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run, compared by identity.

    Attributes:
        path: its directory.
        settings: every key of its configuration by its dotted name.
        figures: the content of ``evaluation.json``, or of ``evaluation-<split>.json``.
        units: (U, WIDTH) sums over documents or blocks, see ``nanolm.metrics.sums``; None where the file is missing
            or of another evaluation than the figures.
        blocks: whether the units are blocks.
        on_train: the content of ``evaluation-train.json``, where the run left one.
    """

    path: Path
    settings: dict[str, Any]
    figures: dict[str, Any]
    units: Array | None
    blocks: bool = False
    on_train: dict[str, Any] | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.settings["seed"])

    def value(self, metric: str) -> float | None:
        """A figure of the split; None where it does not exist or is not finite."""
        entry = self.figures.get(metric)
        return entry["value"] if isinstance(entry, dict) else None

    def half_width(self, metric: str) -> float | None:
        """Half the width of a figure's interval; None where it has none."""
        entry = self.figures.get(metric)
        if not isinstance(entry, dict) or entry["low"] is None or entry["high"] is None:
            return None
        return float(entry["high"] - entry["low"]) / 2


def find_runs(folder: Path, split: str = "val") -> tuple[list[Run], list[Path]]:
    """The finished runs below a folder, in the order of their paths with numbers taken as numbers, and the unfinished.

    A run is a directory with the ``config.yaml`` of a training or a baseline; it is finished when it has the evaluation
    of the split.

    Raises:
        DataError: no run, none finished, or a file of one that is damaged.
    """
    inner = {"checkpoints", "wandb"}  # what lies in these is part of a run
    places = [path.parent for path in folder.rglob(CONFIG) if not inner & set(path.relative_to(folder).parts[:-1])]
    places.sort(key=lambda place: _natural(str(place.relative_to(folder))))
    suffix = "" if split == "val" else f"-{split}"
    found, unfinished = [], []
    for place in places:
        settings = _settings(place / CONFIG)
        if not any(key.startswith(("trainer.", "task.")) for key in settings):
            continue  # of another script
        evaluation = place / f"evaluation{suffix}.json"
        if not evaluation.is_file():
            unfinished.append(place)
            continue
        on_train = place / "evaluation-train.json"
        figures = _figures(evaluation)
        units, blocks = _units(place / f"documents-{split}.npz", figures)
        found.append(
            Run(
                path=place,
                settings=settings,
                figures=figures,
                units=units,
                blocks=blocks,
                on_train=_figures(on_train) if on_train.is_file() else None,
            )
        )
    if not found and not unfinished:
        raise DataError(f"runs={folder}: expected finished runs below this folder, found no run at all")
    if not found:
        hint = (
            "finish them: the log in each has its command"
            if split == "val"
            else f"make it with scripts/evaluate.py split={split}"
        )
        raise DataError(
            f"runs={folder}: expected finished runs below this folder, found {len(unfinished)} without "
            f"evaluation{suffix}.json; {hint}"
        )
    return found, unfinished


def _units(path: Path, figures: dict[str, Any]) -> tuple[Array | None, bool]:
    """The sums of a file if they are those of the figures: an evaluation with another stride may have replaced it."""
    if not path.is_file():
        return None, False
    (units, blocks), nll = read_units(path), figures["nll"]["value"]
    same = nll is not None and math.isclose(float(STATISTICS["nll"](units.sum(axis=0))), nll, rel_tol=1e-9)
    return (units if same else None), blocks


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that puts run 10 behind run 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("seed"), int):
        raise DataError(f"{path}: expected the configuration of a run, with its seed")
    return dict(dotted(content))


def _figures(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content["nll"]["value"], int | float | None):
            raise TypeError("nll")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected the evaluation of a run, found {error!r}; evaluate the run again") from None
    assert isinstance(content, dict), "a list has no key nll"
    return content
