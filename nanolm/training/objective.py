"""What a step minimises: the likelihood of the text, or that mixed with the probabilities of a teacher."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanolm.config import flatten
from nanolm.config.schema import TrainConfig
from nanolm.data import Tokenizer
from nanolm.device import Compute
from nanolm.errors import CheckpointError, ConfigError
from nanolm.loss import Distillation, LossOptions, NLLResult, TeacherTargets, distilled_linear_nll, linear_nll
from nanolm.model import GPT
from nanolm.objective import TEACHER, distillation_of, loss_options
from nanolm.training.checkpoint import WEIGHTS, Checkpoint, find_checkpoint
from nanolm.training.resume import EVALUATION


@dataclass(frozen=True)
class Objective:
    """The negative log-likelihood of the tokens.

    Attributes:
        teacher: SHA-256 of the teacher's weights; None without a teacher.
        teacher_settings: the teacher's configuration by dotted names.
        notes: what a run reports about it.
    """

    options: LossOptions
    teacher: str | None = None
    teacher_settings: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def __call__(self, inputs: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor) -> NLLResult:
        """Return the summed objective of a micro-batch, and the statistics of its tokens.

        inputs: (B, T) tokens; hidden: (B, T, D) of the model that learns; weight: (V, D) of its head; targets: (B, T)
        """
        return linear_nll(hidden.flatten(0, 1), weight, targets.flatten(), options=self.options)


@dataclass(frozen=True)
class DistilledObjective(Objective):
    """The likelihood mixed with a teacher's probabilities; see ``nanolm.loss.distillation``.

    The teacher reads the same tokens, without dropout and without gradients, in the precision of the run. The
    statistics are about the model that learns and the text alone.
    """

    distillation: Distillation = field(kw_only=True)
    model: GPT = field(kw_only=True)
    teacher_options: LossOptions = field(kw_only=True)

    def __call__(self, inputs: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor) -> NLLResult:
        """Return what ``Objective`` does, with the teacher's part in the objective."""
        with torch.no_grad():
            read = self.model(inputs).flatten(0, 1)
        soft = TeacherTargets(read, self.model.head_weight, self.distillation.softened(self.teacher_options))
        return distilled_linear_nll(
            hidden.flatten(0, 1), weight, targets.flatten(), soft, self.distillation, self.options
        )


def open_objective(config: TrainConfig, run_dir: Path, tokenizer: Tokenizer, compute: Compute) -> Objective:
    """Return the objective that a configuration asks for, its teacher loaded.

    Raises:
        CheckpointError: there is no valid checkpoint at the teacher's path.
        ConfigError: the teacher reads other tokens or a shorter context, or is the run itself.
    """
    options, distillation = loss_options(config.loss), config.loss.distillation
    if distillation.teacher is None:
        return Objective(options)
    checkpoint = _find_teacher(Path(distillation.teacher), config, run_dir, tokenizer)
    model = checkpoint.load_model(compute.device).requires_grad_(False)
    sha256 = checkpoint.manifest.files[WEIGHTS]["sha256"]
    note = (
        f"teacher: {checkpoint.path}, {checkpoint.config.model.name}, {model.num_parameters():,} parameters, "
        f"sha256 {sha256[:12]}…"
    )
    return DistilledObjective(
        options,
        sha256,
        {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(checkpoint.config).items()},
        [note],
        distillation=distillation_of(config.loss),
        model=model,
        teacher_options=loss_options(checkpoint.config.loss),
    )


def _find_teacher(path: Path, config: TrainConfig, run_dir: Path, tokenizer: Tokenizer) -> Checkpoint:
    if run_dir.resolve() in (path.resolve(), *path.resolve().parents):
        raise ConfigError(
            f"{TEACHER}: expected a run that is trained already, found {path}, the directory of this run itself; "
            "give another one, or null for no teacher"
        )
    checkpoint = find_checkpoint(path, TEACHER)
    if checkpoint.path.resolve() != path.resolve() and not (path / EVALUATION).exists():
        raise ConfigError(
            f"{TEACHER}: expected a finished run, found {path} at step {checkpoint.step:,} without {EVALUATION}; "
            f"finish it first, or name the checkpoint itself, {checkpoint.path}"
        )
    if checkpoint.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{TEACHER}: expected the tokenizer of this run, with a vocabulary of {tokenizer.vocab_size:,}, found "
            f"another one in {checkpoint.path}, with a vocabulary of {checkpoint.tokenizer.vocab_size:,}; a teacher's "
            "probabilities are about its own tokens, so train both with the same data and tokenizer keys"
        )
    length, context = config.trainer.sequence_length, checkpoint.config.trainer.sequence_length
    if context < length:
        raise ConfigError(
            f"{TEACHER}: expected a context of at least trainer.sequence_length, {length}, found {context} in "
            f"{checkpoint.path}; it has not learnt to read further, so lower trainer.sequence_length"
        )
    return checkpoint


def check_same_teacher(checkpoint: Checkpoint, objective: Objective) -> None:
    """Raise CheckpointError unless the run that left ``checkpoint`` had this teacher, or none as now."""
    before, now = checkpoint.manifest.teacher, objective.teacher
    if before != now:
        there, here = ("none" if sha256 is None else f"weights of sha256 {sha256}" for sha256 in (before, now))
        raise CheckpointError(
            f"{checkpoint.path}: trained with another teacher than the one that {TEACHER} gives now ({there} there, "
            f"{here} now). Give the teacher that it had, or start in another hydra.run.dir."
        )
