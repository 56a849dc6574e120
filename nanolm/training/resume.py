"""Decide what to do with an existing run directory: skip a finished run, continue this run, or refuse another one.

A run is the same if its configuration agrees in everything that decides its numbers, and its checkpoints are those of
the same text, tokenizer and teacher. Everything else is refused with the differences, one line per key.
"""

from pathlib import Path

import torch

from nanolm.config import check_same_config, differences
from nanolm.config.schema import TrainConfig
from nanolm.data import PreparedCorpus
from nanolm.device import Compute
from nanolm.errors import CheckpointError, ConfigError, DataError, sentence
from nanolm.files import read_record
from nanolm.metrics import Evaluation
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.tracking import read_metrics
from nanolm.training.checkpoint import Checkpoint
from nanolm.training.state import TrainingState

EVALUATION = "evaluation.json"
"""The last file of a finished run, in its directory."""


def why_finished(config: TrainConfig, run_dir: Path) -> str | None:
    """Return how a run of this length is known to be finished and evaluated; None if it is not.

    Raises:
        CheckpointError: ``evaluation.json`` is not what a run writes.
        DataError: nor is ``metrics.jsonl``, which holds the seconds of a run with a limit in seconds.
    """
    path, trainer = run_dir / EVALUATION, config.trainer
    if not path.exists():
        return None
    try:
        step = read_record(path, Evaluation, CheckpointError).step
    except CheckpointError as error:
        raise CheckpointError(f"{sentence(error)} Remove it to evaluate the run again.") from None
    limits = [f"trainer.max_steps above {step:,}"] if trainer.max_steps and step >= trainer.max_steps else []
    if trainer.max_seconds and (seconds := _seconds(run_dir)) >= trainer.max_seconds:
        limits.append(f"trainer.max_seconds above {seconds:,.1f}")
    if not limits:
        return None
    return (
        f"{run_dir}: this run is finished ({step:,} steps, {EVALUATION} is there), so there is nothing to do.\n"
        f"For a longer one raise {' and '.join(limits)}; for a new one give another hydra.run.dir, or none."
    )


def _seconds(run_dir: Path) -> float:
    """Return the seconds of training up to the last step, over all starts, its evaluation included."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    seconds = lines[-1].get("train/seconds") if lines else None
    if not isinstance(seconds, int | float):
        raise DataError(f"{run_dir}/metrics.jsonl: expected train/seconds in its last line, found {seconds!r:.60}")
    return float(seconds)


def check_same_run(config: TrainConfig, run_dir: Path) -> None:
    """Raise ConfigError if the directory's ``config.yaml`` is that of another run, or ``trainer.resume`` is never."""
    check_same_config(config, run_dir)
    if config.trainer.resume == "never" and (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"{run_dir}: trainer.resume=never, but this directory holds a run already. "
            "Use trainer.resume=auto to continue it, or give another hydra.run.dir."
        )


def new_state(config: TrainConfig, corpus: PreparedCorpus, compute: Compute) -> TrainingState:
    """Return the state before the first step: a function of the seed."""
    torch.manual_seed(config.seed)
    model = GPT(config.model, corpus.tokenizer.vocab_size).to(compute.device)
    return TrainingState(model, build_optimizer(model, config.optimizer))


def restore(state: TrainingState, checkpoint: Checkpoint, config: TrainConfig, corpus: PreparedCorpus) -> None:
    """Load a checkpoint of this run into a new state.

    Raises:
        CheckpointError: it is that of another configuration, text or tokenizer, or its state is not complete.
    """
    differing = differences(checkpoint.config, config)
    there, here = checkpoint.tokenizer, corpus.tokenizer
    if there.fingerprint != here.fingerprint:
        differing.append(
            f"  tokenizer: {there.name} of {there.vocab_size:,} ids there, {here.name} of {here.vocab_size:,} now, "
            f"with sha256 {there.fingerprint:.12} and {here.fingerprint:.12}"
        )
    if checkpoint.manifest.corpus != corpus.fingerprint:
        differing.append(
            f"  corpus: fingerprint {checkpoint.manifest.corpus:.12} there, {corpus.fingerprint:.12} now "
            f"({corpus.folder})"
        )
    if differing:
        raise CheckpointError(
            f"{checkpoint.path}: this checkpoint is of another run than the one asked for:\n"
            + "\n".join(differing)
            + "\nRestore the text and the values to continue it, or give another hydra.run.dir for a new run."
        )
    try:
        checkpoint.load_state(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{sentence(error)} Nothing was changed. Move {checkpoint.path} away to continue from the checkpoint "
            "before it, or give another hydra.run.dir for a new run."
        ) from None
