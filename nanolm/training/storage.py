"""Disks that are full or fail: found before the first step where that is possible, and told in words where it is not.

What the user has to know then: which file, how much room there is, which checkpoint is the last good one, and what to
type to go on.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nanolm.errors import CheckpointError, NonFiniteError, OutOfMemoryError, StorageError, out_of_memory, sentence
from nanolm.files import failure, free_bytes
from nanolm.training.checkpoint import newest_checkpoint
from nanolm.training.state import TrainingState

OTHER_RUN = "With other values give another hydra.run.dir. The command was:"
SMALL_FILES_BYTES = 128 * 1024
"""Configuration, manifest, the histograms of ``train/ece``, and the frames of the two large files."""


def checkpoint_bytes(state: TrainingState, tokenizer_file: Path) -> int:
    """About the size of a checkpoint of this state: weights and moments, whether there are moments yet or not."""
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in state.model.state_dict().values())
    return weights + state.optimizers.num_moment_bytes() + tokenizer_file.stat().st_size + SMALL_FILES_BYTES


def require_room(run_dir: Path, state: TrainingState, tokenizer_file: Path, command: str) -> None:
    """Look, before the first step, whether a checkpoint can be written at all.

    Raises:
        StorageError: the folder of checkpoints cannot be made, or the disk has less room than one checkpoint takes.
    """
    folder = run_dir / "checkpoints"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: expected a folder for checkpoints, or none yet: {error.strerror}. No step was done. Remove "
            f"what is there, or give another hydra.run.dir; then: {command}"
        ) from None
    needed, free = checkpoint_bytes(state, tokenizer_file), free_bytes(folder)
    if free < needed:
        raise StorageError(
            f"{folder}: a checkpoint of this model takes about {needed:,} bytes, and {free:,} bytes are free there. "
            f"No step was done. Free at least {needed - free:,} bytes, or give a hydra.run.dir on another disk; "
            f"then: {command}"
        )


@contextlib.contextmanager
def failures_told(run_dir: Path, command: str) -> Iterator[None]:
    """Add to an error that ends a run where the run stands and how it goes on.

    Raises:
        StorageError: in place of an OSError.
        OutOfMemoryError: in place of an allocation that failed.
        NonFiniteError: as it came, with what a user can do.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):  # no disk's
        raise
    except OSError as error:
        raise StorageError(
            f"{failure(error, run_dir)}. {last_checkpoint(run_dir)} When that is put right, continue with: {command}"
        ) from error
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error} {last_checkpoint(run_dir)} {OTHER_RUN} {command}") from error
    except (MemoryError, RuntimeError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        raise OutOfMemoryError(
            f"out of memory: {reason}. {last_checkpoint(run_dir)} Choose a smaller model, evaluate.batch_size, "
            f"trainer.micro_batch_size or trainer.sequence_length. {OTHER_RUN} {command}"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{sentence(error)} {last_checkpoint(run_dir)} The same command would meet the same batches again: lower "
            "optimizer.learning_rate (and optimizer.matrix_learning_rate) or trainer.max_grad_norm. "
            f"{OTHER_RUN} {command}"
        ) from error


def last_checkpoint(run_dir: Path) -> str:
    """A sentence about the newest checkpoint that verifies."""
    if not run_dir.is_dir():
        return f"{run_dir} is not there."
    try:
        checkpoint = newest_checkpoint(run_dir)
    except (CheckpointError, OSError) as error:
        return sentence(error)
    if checkpoint is None:
        return "The run has no checkpoint yet."
    return f"The last good checkpoint is {checkpoint.path}, of step {checkpoint.step:,}."
