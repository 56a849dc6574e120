"""Classifiers that learn from the probabilities of another classifier alongside the classes.

A baseline leaves no weights, but its configuration determines them. So the teacher is fitted anew for each fold, on
what the fold's student learns from: a teacher of all examples would pass on what it saw of the scored ones.
"""

from pathlib import Path

from nanolm.classifiers.datasets import Dataset
from nanolm.classifiers.folds import Fold
from nanolm.classifiers.learner import Learner
from nanolm.config import from_yaml, typed
from nanolm.config.schema import BaselineConfig
from nanolm.errors import CheckpointError, ConfigError, NonFiniteError
from nanolm.objective import TEACHER, loss_options


def read_teacher(config: BaselineConfig) -> BaselineConfig | None:
    """Read the configuration of the teacher, a finished baseline; None without a teacher.

    Raises:
        CheckpointError: there is no finished baseline at the path.
        ConfigError: the teacher was fitted to other data, or has a teacher itself.
    """
    if config.loss.distillation.teacher is None:
        return None
    path = Path(config.loss.distillation.teacher)
    found = [f"no {name}" for name in ("config.yaml", "evaluation.json") if not (path / name).is_file()]
    if (path / "checkpoints").is_dir():
        found.append("the checkpoints of a language model")
    if found:
        raise CheckpointError(f"{TEACHER}={path}: expected a finished baseline, found {' and '.join(found)}")
    try:
        teacher = from_yaml((path / "config.yaml").read_text(encoding="utf-8"), BaselineConfig)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{TEACHER}={path}: config.yaml cannot be read as a baseline's: {error}") from None
    for name in ("name", "path", "target"):
        its, ours = getattr(teacher.task, name), getattr(config.task, name)
        if its != ours and not (name == "path" and its and ours and Path(its).resolve() == Path(ours).resolve()):
            raise ConfigError(
                f"{TEACHER}: expected a baseline of the same data, found task.{name}={typed(its)} in {path}, "
                f"{typed(ours)} here"
            )
    if teacher.loss.distillation.teacher is not None:
        raise ConfigError(
            f"{TEACHER}: expected a baseline without a teacher of its own, found {path}; give its teacher, "
            f"{teacher.loss.distillation.teacher}, or another"
        )
    return teacher


def fit_teacher(teacher: BaselineConfig, dataset: Dataset, fold: Fold, seed: int) -> Learner:
    """Fit the teacher on what the student of one fold learns from; raise NonFiniteError if it diverges."""
    learner = Learner(dataset, fold, teacher.task, loss_options(teacher.loss), seed)
    try:
        learner.fit(teacher.task.epochs)
    except NonFiniteError as error:
        raise NonFiniteError(f"{TEACHER}: the teacher cannot be fitted: {error}") from None
    return learner
