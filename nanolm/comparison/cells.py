"""Which runs belong together: cells of equal configuration but for the seed, and the keys that tell cells apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanolm.comparison.runs import Run
from nanolm.errors import ConfigError

IRRELEVANT = (
    "name",
    "seed",
    "wandb.",
    "sample.",
    "separation.",
    "data.root",
    "evaluate.batch_size",
    "evaluate.further_splits",
    "evaluate.calibration_sizes",
    "task.eval_every",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.resume",
)
"""Keys that tell no cells apart: seeds are what a cell holds several of, and the rest changes no figure."""

TEACHER = "loss.distillation.teacher"
LANGUAGE_MODEL = "language model"

Value = Any


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone.

    Attributes:
        values: the values of the panel's keys.
        label: what sets it apart, in words.
        runs: one for each seed.
    """

    values: tuple[Value, ...]
    label: str
    runs: list[Run]

    def by_seed(self) -> dict[int, Run]:
        """The runs by their seeds."""
        return {run.seed: run for run in self.runs}


@dataclass(frozen=True)
class Panel:
    """Cells of one task, that can be compared.

    Attributes:
        task: ``binary``, ``softmax`` or ``language model``.
        keys: the keys that tell the cells apart, as few as it takes.
        cells: in the order of the first run of each.
        baseline: the one that the others are compared with.
    """

    task: str
    keys: tuple[str, ...]
    cells: list[Cell]
    baseline: Cell = field(repr=False)

    def settings(self, cell: Cell) -> dict[str, Value]:
        """The values of a cell by the panel's keys."""
        return dict(zip(self.keys, cell.values, strict=True))


def make_panels(runs: Sequence[Run], baseline: str | None = None) -> list[Panel]:
    """One panel for each task among the runs.

    Args:
        baseline: a key and its value, ``loss.label_smoothing=0``, that the baseline cell has; by default it is the
            cell of a panel's first run.

    Raises:
        ConfigError: no cell has that value.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(str(run.settings.get("task.name", LANGUAGE_MODEL)), []).append(run)
    panels = [_panel(task, members, baseline) for task, members in by_task.items()]
    found = [panel for panel in panels if panel is not None]
    if not found:
        raise ConfigError(
            f"baseline: no run has {baseline!r}; expected KEY=VALUE of one of the cells, "
            "with a key and a value as in its config.yaml"
        )
    return found


def _panel(task: str, runs: list[Run], baseline: str | None) -> Panel | None:
    teachers = _teachers(runs)
    settings = [
        {key: value for key, value in run.settings.items() if not key.startswith(IRRELEVANT)}
        | ({TEACHER: teachers[run.path]} if TEACHER in run.settings else {})
        for run in runs
    ]
    keys = _telling_keys(settings)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run, values in zip(runs, settings, strict=True):
        groups.setdefault(tuple(repr(values.get(key)) for key in keys), []).append(run)
    values_of = {run.path: tuple(values.get(key) for key in keys) for run, values in zip(runs, settings, strict=True)}
    members = [sorted(group, key=lambda run: run.seed) for group in groups.values()]
    first = members[0] if baseline is None else next((m for m in members if _has(m[0], baseline)), None)
    if first is None:
        return None
    reference = values_of[first[0].path]
    cells = [
        Cell(values_of[group[0].path], _label(keys, values_of[group[0].path], reference, group is first), group)
        for group in members
    ]
    return Panel(task, keys, cells, next(cell for cell in cells if cell.runs is first))


def _telling_keys(settings: list[dict[str, Value]]) -> tuple[str, ...]:
    """As few keys as it takes to tell apart all that differ; names of groups go before the values in them."""
    names = dict.fromkeys(key for values in settings for key in values)
    differing = [key for key in names if len({repr(values.get(key)) for values in settings}) > 1]
    differing.sort(key=lambda key: (key == TEACHER, not key.endswith(".name"), key not in settings[0]))
    kept = list(differing)
    for key in reversed(differing):
        without = [other for other in kept if other != key]
        if _partition(settings, without) == _partition(settings, differing):
            kept = without
    return tuple(kept)


def _partition(settings: list[dict[str, Value]], keys: Sequence[str]) -> list[int]:
    """For each run the number of the first run that agrees with it in these keys."""
    first: dict[tuple[str, ...], int] = {}
    return [
        first.setdefault(tuple(repr(values.get(key)) for key in keys), number) for number, values in enumerate(settings)
    ]


def _teachers(runs: list[Run]) -> dict[Path, str | None]:
    """For each run a name of its teacher that is the same for all seeds of that teacher."""
    by_path = {run.path.resolve(): run for run in runs}
    names: dict[Path, str | None] = {}
    kinds: dict[str, str] = {}
    for run in runs:
        given = run.settings.get(TEACHER)
        teacher = by_path.get(Path(given).resolve()) if isinstance(given, str) else None
        if teacher is None:
            names[run.path] = given
            continue
        relevant = {key: value for key, value in teacher.settings.items() if not key.startswith(IRRELEVANT)}
        names[run.path] = kinds.setdefault(repr(sorted(relevant.items(), key=str)), teacher.path.name)
    return names


def _has(run: Run, wanted: str) -> bool:
    key, _, value = wanted.partition("=")
    if key not in run.settings:
        return False
    found = run.settings[key]
    try:
        return not isinstance(found, bool | None) and float(value) == float(found)
    except (TypeError, ValueError):
        return shown(found) == value


def _label(keys: Sequence[str], values: Sequence[Value], reference: Sequence[Value], is_baseline: bool) -> str:
    pairs = list(zip(keys, values, reference, strict=True))
    told = [f"{short(key)}={shown(value)}" for key, value, other in pairs if is_baseline or value != other]
    return " ".join(told) or "all runs"


def short(key: str) -> str:
    """The last part of a dotted key, with the part before it where that alone says little."""
    *before, last = key.split(".")
    return f"{before[-1]}.{last}" if before and last in ("name", "temperature", "weight", "path", "l2") else last


def shown(value: Value) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
