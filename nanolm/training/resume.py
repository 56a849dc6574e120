"""What a run directory holds already: a finished run, one to continue, or one that is another.

A run is the same where its configuration agrees in all that decides its numbers, and its checkpoints are of the same
text, tokenizer and teacher. Everything else is refused with the differences, one line a key.
"""

from pathlib import Path

import torch

from nanolm.config import differences, from_yaml
from nanolm.config.schema import TrainConfig
from nanolm.data import PreparedCorpus
from nanolm.device import Compute
from nanolm.errors import CheckpointError, ConfigError, DataError, sentence
from nanolm.files import parse_json
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.tracking import Console, read_metrics
from nanolm.training.checkpoint import EVALUATION, Checkpoint
from nanolm.training.objective import Likelihood, check_same_teacher
from nanolm.training.state import TrainingState

# A continued run may differ in these: they change what is kept and shown, never what is computed; and in its length.
CHANGEABLE = (
    "name",
    "data.root",
    "data.path",
    "evaluate.further_splits",
    "evaluate.calibration_sizes",
    "loss.distillation.teacher",  # the path; the weights are compared with those that the checkpoints name
    "trainer.max_steps",
    "trainer.max_seconds",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.resume",
    "sample.",
    "wandb.",
)


def is_finished(config: TrainConfig, run_dir: Path) -> bool:
    """Whether the run has reached its length and been evaluated; the user is told so then.

    Raises:
        CheckpointError: ``evaluation.json`` is not what a run writes.
        DataError: nor is ``metrics.jsonl``, which tells the seconds of a run with a limit in seconds.
    """
    path = run_dir / EVALUATION
    if not path.exists():
        return False
    try:
        step = parse_json(path.read_bytes())["step"]
        if type(step) is not int or not 0 <= step < 1 << 63:
            raise ValueError(step)
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the evaluation of a run; remove it to evaluate the run again") from None
    trainer = config.trainer
    limits = [f"trainer.max_steps above {step:,}"] if trainer.max_steps and step >= trainer.max_steps else []
    if trainer.max_seconds and (seconds := _seconds(run_dir)) >= trainer.max_seconds:
        limits.append(f"trainer.max_seconds above {seconds:,.1f}")
    if not limits:
        return False
    console = Console()
    console.note(f"{run_dir}: this run is finished ({step:,} steps, {EVALUATION} is there), so there is nothing to do.")
    console.note(f"For a longer one raise {' and '.join(limits)}; for a new one give another hydra.run.dir, or none.")
    console.result(str(run_dir))
    return True


def _seconds(run_dir: Path) -> float:
    """The seconds of training up to its last step, over all starts, that step's evaluation included."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    seconds = lines[-1].get("train/seconds") if lines else None
    if not isinstance(seconds, int | float):
        raise DataError(f"{run_dir}/metrics.jsonl: expected train/seconds in its last line, found {seconds!r:.60}")
    return float(seconds)


def check_same_run(config: TrainConfig, run_dir: Path) -> None:
    """Raise ConfigError where the directory's ``config.yaml`` is of another run, or ``trainer.resume`` is never."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        before = from_yaml(path.read_text(encoding="utf-8"), TrainConfig)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected the configuration of this run: {sentence(error)} Copy config.yaml there from one of its "
            "checkpoints, or give another hydra.run.dir for a new run."
        ) from None
    if differing := differences(before, config, CHANGEABLE):
        raise ConfigError(
            f"{run_dir}: this directory holds a run with another configuration:\n"
            + "\n".join(differing)
            + "\nGive the same values to continue it, or another hydra.run.dir for a new run."
        )
    if config.trainer.resume == "never":
        raise ConfigError(
            f"{run_dir}: trainer.resume=never, but this directory holds a run already. "
            "Use trainer.resume=auto to continue it, or give another hydra.run.dir."
        )


def build_state(
    config: TrainConfig, checkpoint: Checkpoint | None, corpus: PreparedCorpus, compute: Compute, objective: Likelihood
) -> TrainingState:
    """A new state, or that of a checkpoint.

    Raises:
        CheckpointError: it is of another configuration, text, tokenizer or teacher, or its state is not whole.
    """
    torch.manual_seed(config.seed)
    model = GPT(config.model, corpus.tokenizer.vocab_size).to(compute.device)
    state = TrainingState(model, build_optimizer(model, config.optimizer))
    if checkpoint is None:
        return state
    differing = differences(checkpoint.config, config, CHANGEABLE)
    there, here = checkpoint.tokenizer, corpus.tokenizer
    if there.fingerprint != here.fingerprint:
        differing.append(
            f"  tokenizer: {there.name} of {there.vocab_size:,} ids there, {here.name} of {here.vocab_size:,} now, "
            f"with sha256 {there.fingerprint:.12} and {here.fingerprint:.12}"
        )
    if checkpoint.manifest.get("corpus") != corpus.fingerprint:
        differing.append(
            f"  corpus: fingerprint {checkpoint.manifest.get('corpus')!s:.12} there, {corpus.fingerprint:.12} now "
            f"({corpus.folder})"
        )
    if differing:
        raise CheckpointError(
            f"{checkpoint.path}: this checkpoint is of another run than the one asked for:\n"
            + "\n".join(differing)
            + "\nRestore the text and the values to continue it, or give another hydra.run.dir for a new run."
        )
    check_same_teacher(checkpoint, objective)
    try:
        checkpoint.load_state(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{sentence(error)} Nothing was changed. Move {checkpoint.path} away to continue from the checkpoint "
            "before it, or give another hydra.run.dir for a new run."
        ) from None
    return state
