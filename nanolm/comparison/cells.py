"""Which runs belong together: cells of equal configuration but for the seed, and the keys that tell cells apart."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    "cross_validation.calibration_sizes",
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


@dataclass(frozen=True, eq=False)
class Cell:
    """Runs that differ in their seed alone, one for each seed in the order of seeds; compared by identity.

    Attributes:
        values: the values of the panel's keys.
        settings: every key that could tell cells apart.
        label: what sets it apart, in words.
        runs: at least one.
    """

    values: tuple[Value, ...]
    settings: dict[str, Value]
    label: str
    runs: list[Run]

    def by_seed(self) -> dict[int, Run]:
        """The runs by their seeds."""
        return {run.seed: run for run in self.runs}


@dataclass(frozen=True, eq=False)
class Panel:
    """Cells of one task, that can be compared.

    Attributes:
        task: ``binary``, ``softmax`` or ``language model``.
        keys: the keys that tell the cells apart, as few as it takes.
        implied: keys that differ too, but only together with those.
        cells: in the order of the first run of each.
        baseline: the one that the others are compared with.
        repeated: runs that are left out, since a later one has the same cell and seed.
    """

    task: str
    keys: tuple[str, ...]
    implied: tuple[str, ...]
    cells: list[Cell]
    baseline: Cell
    repeated: list[Run]


def make_panels(runs: Sequence[Run], baseline: str | None = None) -> list[Panel]:
    """One panel for each task among the runs.

    Args:
        baseline: keys and values, ``loss.label_smoothing=0`` or several with spaces between them, that the baseline
            cell has; a key may be short, as in the labels. By default, and for a task without such a cell, it is the
            cell of the panel's first run.

    Raises:
        ConfigError: no cell of any task has these values.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(str(run.settings.get("task.name", LANGUAGE_MODEL)), []).append(run)
    groups = {task: _Groups(members) for task, members in by_task.items()}
    wanted = {task: found.having(baseline) if baseline else 0 for task, found in groups.items()}
    if all(place is None for place in wanted.values()):
        cells = "\n  ".join(cell.label for task, found in groups.items() for cell in found.panel(task, 0).cells)
        raise ConfigError(f"baseline: no cell has {baseline!r}; expected KEY=VALUE of one of these cells:\n  {cells}")
    return [found.panel(task, wanted[task] or 0) for task, found in groups.items()]


class _Groups:
    """The runs of one task, grouped by what tells them apart."""

    def __init__(self, runs: list[Run]) -> None:
        settings = [_relevant(run.settings) for run in runs]
        for values, teacher in zip(settings, _teachers(runs), strict=True):
            if TEACHER in values:
                values[TEACHER] = teacher
        self.keys, self.implied = _telling_keys(settings)
        members: dict[tuple[str, ...], list[tuple[dict[str, Value], Run]]] = {}
        for values, run in zip(settings, runs, strict=True):
            members.setdefault(_told(values, self.keys), []).append((values, run))
        self.settings = [group[0][0] for group in members.values()]
        self.runs = [[run for _, run in group] for group in members.values()]

    def having(self, wanted: str) -> int | None:
        """The number of the first cell that has the values of ``KEY=VALUE KEY=VALUE``."""
        for parts in ([wanted], wanted.split()):  # a value may hold spaces itself
            pairs = [part.partition("=")[::2] for part in parts]
            for number, settings in enumerate(self.settings):
                if all(any(_matches(key, value, *setting) for setting in settings.items()) for key, value in pairs):
                    return number
        return None

    def panel(self, task: str, baseline: int) -> Panel:
        """The cells, told apart from the one with this number."""
        reference = self.settings[baseline]
        cells, repeated = [], []
        for number, (settings, runs) in enumerate(zip(self.settings, self.runs, strict=True)):
            last = {run.seed: run for run in runs}
            repeated += [run for run in runs if last[run.seed] is not run]
            values = tuple(settings.get(key) for key in self.keys)
            label = _label(self.keys, values, [reference.get(key) for key in self.keys], number == baseline)
            cells.append(Cell(values, settings, label, [last[seed] for seed in sorted(last)]))
        return Panel(task, self.keys, self.implied, cells, cells[baseline], repeated)


def _relevant(settings: dict[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in settings.items() if not key.startswith(IRRELEVANT)}


def _telling_keys(settings: list[dict[str, Value]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """As few keys as it takes to tell apart all that differ, and the others that differ.

    Names of groups go before the values in them.
    """
    names = dict.fromkeys(key for values in settings for key in values)
    differing = [key for key in names if len({repr(values.get(key)) for values in settings}) > 1]
    differing.sort(key=lambda key: (key == TEACHER, not key.endswith(".name"), key not in settings[0]))
    kept = list(differing)
    for key in reversed(differing):
        without = [other for other in kept if other != key]
        if _partition(settings, without) == _partition(settings, differing):
            kept = without
    return tuple(kept), tuple(key for key in differing if key not in kept)


def _partition(settings: list[dict[str, Value]], keys: Sequence[str]) -> list[int]:
    """For each run the number of the first run that agrees with it in these keys."""
    first: dict[tuple[str, ...], int] = {}
    return [first.setdefault(_told(values, keys), number) for number, values in enumerate(settings)]


def _told(values: dict[str, Value], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(values.get(key)) for key in keys)


def _teachers(runs: list[Run]) -> list[str | None]:
    """What each run's teacher is, in words that are the same for all seeds of one kind; None without one.

    A teacher is known by its configuration: the one that the run's figures hold, or that of the run it names, if that
    is among these; else by its path.
    """
    by_path = {run.path.resolve(): run.settings for run in runs}
    kinds: dict[str, dict[str, Value]] = {}
    of_run: list[str | None] = []
    for run in runs:
        given, stored = run.settings.get(TEACHER), run.figures.get("teacher")
        settings = stored if isinstance(stored, dict) else by_path.get(Path(given).resolve()) if given else None
        kind = given if settings is None else repr(sorted(_relevant(settings).items()))
        of_run.append(kind)
        if kind is not None:
            kinds.setdefault(kind, {TEACHER: given} if settings is None else _relevant(settings))
    keys, _ = _telling_keys(list(kinds.values())) if kinds else ((), ())
    names = {
        kind: ", ".join(f"{short(key)}={shown(settings.get(key))}" for key in keys) or "one"
        for kind, settings in kinds.items()
    }
    return [None if kind is None else names[kind] for kind in of_run]


def _matches(wanted_key: str, wanted: str, key: str, value: Value) -> bool:
    if wanted_key not in (key, short(key)):
        return False
    try:
        return float(wanted) == float(value) and not isinstance(value, bool)
    except (TypeError, ValueError):
        return shown(value) == wanted


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
