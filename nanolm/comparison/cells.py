"""Group runs into cells, which differ in their seed alone, and find the keys that tell the cells apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolm.comparison.runs import Run
from nanolm.config.schema import irrelevant_keys
from nanolm.errors import ConfigError

IRRELEVANT = irrelevant_keys()
"""Keys that do not distinguish cells: a cell holds several seeds, and the others change no metric."""

TEACHER = "loss.distillation.teacher"
LANGUAGE_MODEL = "language model"

Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """Runs of one configuration, one for each seed; two cells are equal only if they are the same object.

    Attributes:
        settings: every key that could distinguish cells, with its value.
        label: the difference from the baseline cell, such as ``label_smoothing=0.1``.
        runs: at least one, in the order of the seeds.
    """

    settings: Settings
    label: str
    runs: list[Run]


@dataclass(frozen=True, eq=False)
class Panel:
    """The cells of one task, ``binary``, ``softmax`` or ``language model``, which can be compared.

    Attributes:
        keys: the keys that distinguish the cells, as few as possible.
        implied: keys that differ as well, but only together with those.
        cells: in the order of the first run of each.
        baseline: the cell that the others are compared with.
        repeated: runs that are left out because a later one has the same configuration and seed.
    """

    task: str
    keys: list[str]
    implied: list[str]
    cells: list[Cell]
    baseline: Cell
    repeated: list[Run]


def make_panels(runs: Sequence[Run], baseline: str | None = None) -> list[Panel]:
    """Return one panel for each task among the runs.

    Args:
        baseline: keys and values of the baseline cell, ``loss.label_smoothing=0`` or several with spaces between them;
            a key may be as short as in the labels. By default, and for a task without such a cell, the baseline is the
            cell of the task's first run.

    Raises:
        ConfigError: no cell of any task has these values.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(str(run.settings.get("task.name", LANGUAGE_MODEL)), []).append(run)
    made = [_make_panel(task, members, baseline) for task, members in by_task.items()]
    panels = [panel for panel, _ in made]
    if baseline and not any(found for _, found in made):
        labels = "\n  ".join(cell.label for panel in panels for cell in panel.cells)
        raise ConfigError(f"baseline: expected KEY=VALUE of one of these cells, found {baseline!r}:\n  {labels}")
    return panels


def _make_panel(task: str, runs: list[Run], baseline: str | None) -> tuple[Panel, bool]:
    """Return the panel, and whether one of its cells has the values of the baseline."""
    settings = _comparable_settings(runs)
    keys, implied = _distinguishing_keys(settings)
    groups = _groups(settings, keys)
    first = [settings[group[0]] for group in groups]
    matching = [place for place, values in enumerate(first) if baseline and _has_values(values, baseline)]
    number = matching[0] if matching else 0
    reference, cells, repeated = first[number], list[Cell](), list[Run]()
    for values, group in zip(first, groups, strict=True):
        by_seed = {runs[place].seed: runs[place] for place in group}
        repeated += [runs[place] for place in group if by_seed[runs[place].seed] is not runs[place]]
        named = [key for key in keys if values is reference or values.get(key) != reference.get(key)]
        label = " ".join(_describe(values, named)) or "all runs"
        cells.append(Cell(values, label, [by_seed[seed] for seed in sorted(by_seed)]))
    return Panel(task, keys, implied, cells, cells[number], repeated), bool(matching)


def _comparable_settings(runs: list[Run]) -> list[Settings]:
    """Return the settings of each run that could distinguish cells.

    A teacher's path differs between seeds. It is replaced by the settings that distinguish the teacher from the others,
    as the run's evaluation or the teacher's own run among these has them; if neither has, the path stays.
    """
    settings = [_relevant(run.settings) for run in runs]
    by_path = {run.path.resolve(): run.settings for run in runs}
    teachers = {}
    for place, run in enumerate(runs):
        if path := run.settings.get(TEACHER):
            known = run.evaluation.teacher or by_path.get(Path(path).resolve())
            teachers[place] = _relevant(known) if known else {TEACHER: path}
    keys, _ = _distinguishing_keys(list(teachers.values()))
    for place, teacher in teachers.items():
        settings[place][TEACHER] = ", ".join(_describe(teacher, keys)) or "one"
    return settings


def _relevant(settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if key not in IRRELEVANT}


def _distinguishing_keys(settings: list[Settings]) -> tuple[list[str], list[str]]:
    """Return as few keys as possible that distinguish all settings that differ, and the other keys that differ.

    The name of a group, such as ``model.name``, is preferred to the values in the group.
    """
    names = dict.fromkeys(key for values in settings for key in values)
    differing = [key for key in names if len({repr(values.get(key)) for values in settings}) > 1]
    differing.sort(key=lambda key: (key == TEACHER, not key.endswith(".name"), key not in settings[0]))
    kept = list(differing)
    for key in reversed(differing):
        without = [other for other in kept if other != key]
        if _groups(settings, without) == _groups(settings, differing):
            kept = without
    return kept, [key for key in differing if key not in kept]


def _groups(settings: list[Settings], keys: Sequence[str]) -> list[list[int]]:
    """Return the places of the settings that agree in these keys, a list for each group."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, values in enumerate(settings):
        groups.setdefault(tuple(repr(values.get(key)) for key in keys), []).append(place)
    return list(groups.values())


def _has_values(settings: Settings, wanted: str) -> bool:
    """Return whether settings have ``KEY=VALUE`` or ``KEY=VALUE KEY=VALUE``; a value may contain spaces itself."""

    def has(part: str) -> bool:
        return any(_matches(part, key, value) for key, value in settings.items())

    return has(wanted) or all(map(has, wanted.split()))


def _matches(wanted: str, key: str, value: Any) -> bool:
    wanted_key, _, wanted_value = wanted.partition("=")
    if wanted_key not in (key, short_key(key)):
        return False
    try:
        return float(wanted_value) == float(value) and not isinstance(value, bool)
    except (TypeError, ValueError):
        return value_text(value) == wanted_value


def _describe(settings: Settings, keys: Sequence[str]) -> list[str]:
    return [f"{short_key(key)}={value_text(settings.get(key))}" for key in keys]


def short_key(key: str) -> str:
    """Return the last part of a dotted key, with the part before it if the last one alone says little."""
    *before, last = key.split(".")
    return f"{before[-1]}.{last}" if before and last in ("name", "temperature", "weight", "path", "l2") else last


def value_text(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
