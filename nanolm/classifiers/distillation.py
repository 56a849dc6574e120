"""Classifiers that learn from the probabilities of another one besides the classes.

A baseline leaves no weights, but its configuration determines it. So the teacher is fitted anew for each fold, on what
the fold's own student learns from: a teacher of all examples would hand over what it saw of the scored ones. It is
standardised alike, and early stopping, where its configuration has it, watches the same inner split.
"""

from pathlib import Path

from torch import Tensor

from nanolm.classifiers.classifier import classification_nll
from nanolm.classifiers.learner import EpochSums, Learner, Objective, loss_options
from nanolm.config import from_yaml, typed
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.errors import CheckpointError, ConfigError, NonFiniteError
from nanolm.loss import Distillation, LossOptions, NLLResult
from nanolm.loss.distillation import soft_probabilities
from nanolm.metrics import GroupedMeter

TEACHER = "loss.distillation.teacher"


def read_teacher(config: BaselineConfig) -> BaselineConfig | None:
    """The configuration of the baseline that is to teach; None without a teacher.

    Raises:
        CheckpointError: there is no finished baseline at the path.
        ConfigError: the teacher was fitted to other data, or has a teacher itself: there is one level only.
    """
    if config.loss.distillation.teacher is None:
        return None
    path = Path(config.loss.distillation.teacher)
    teacher = _read_config(path)
    for name in ("name", "path", "target"):
        its, ours = getattr(teacher.task, name), getattr(config.task, name)
        if not (its == ours or (name == "path" and its and ours and Path(its).resolve() == Path(ours).resolve())):
            raise ConfigError(
                f"{TEACHER}: expected a baseline of the same data, found task.{name} {typed(its)} in {path} and "
                f"{typed(ours)} here; give the same task.name, task.path and task.target to both"
            )
    if teacher.loss.distillation.teacher is not None:
        raise ConfigError(
            f"{TEACHER}: expected a baseline without a teacher, found {path}, which learnt from "
            f"{teacher.loss.distillation.teacher}; there is one level only, so give that one, or another"
        )
    return teacher


def _read_config(path: Path) -> BaselineConfig:
    """The configuration of a finished baseline run."""
    if not (path / "config.yaml").is_file() or not (path / "evaluation.json").is_file():
        lacking = " and ".join(name for name in ("config.yaml", "evaluation.json") if not (path / name).is_file())
        raise CheckpointError(
            f"{TEACHER}={path}: expected the run directory of a finished baseline, found no {lacking} there; give a "
            "directory that scripts/baseline.py printed last"
        )
    if (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"{TEACHER}={path}: expected the run directory of a baseline, found that of a language model; give a "
            "directory that scripts/baseline.py printed last"
        )
    try:
        return from_yaml((path / "config.yaml").read_text(encoding="utf-8"), BaselineConfig)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{TEACHER}={path}: its config.yaml cannot be read as that of a baseline: {error}"
        ) from None


def fit_teacher(
    teacher: BaselineConfig,
    num_classes: int,
    learning: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    seed: int,
) -> Learner:
    """The teacher of one fold, fitted as its configuration says on what the fold's student will learn from.

    Raises:
        NonFiniteError: its loss became NaN or infinite.
    """
    learner = Learner(teacher.task, num_classes, learning, validation, loss_options(teacher.loss), seed)
    for epoch in range(1, teacher.task.epochs + 1):
        try:
            learner.train_epoch(epoch, EpochSums(GroupedMeter(1)))
        except NonFiniteError as error:
            raise NonFiniteError(f"{TEACHER}: while the teacher was fitted: {error}") from None
        if learner.stopped_at is not None:
            break
    learner.finish()
    return learner


def distilled_likelihood(
    targets: Tensor,
    options: LossOptions,
    teacher_logits: Tensor,
    teacher_options: LossOptions,
    distillation: Distillation,
) -> Objective:
    """The mean objective of a batch with a teacher's probabilities in it; see ``nanolm.loss.distillation``.

    targets: (N,) classes; teacher_logits: (N, V), or (N,) log-odds, of the same examples; options and
    teacher_options: of the model that learns, and of the teacher

    The probabilities are formed once, for all examples: tasks of this room are small.
    """
    soft_targets = soft_probabilities(teacher_logits, distillation.softened(teacher_options))
    softened = distillation.softened(options)

    def objective(logits: Tensor, batch: Tensor) -> NLLResult:
        hard = classification_nll(logits, targets[batch], options)
        soft = classification_nll(logits, targets[batch], softened, soft_targets=soft_targets[batch])
        return distillation.combine(hard, soft)

    return objective
