"""Disks that are full or fail: found before the first step where that is possible, and told in words where it is not.

What the user has to know then: which file, how much room there is, which checkpoint is the last good one, and what to
type to go on.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from nanolm.errors import CheckpointError, NonFiniteError, StorageError, sentence
from nanolm.training.checkpoint import newest_checkpoint
from nanolm.training.state import TrainingState

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SMALL_FILES_BYTES = 128 * 1024
"""Configuration, manifest, the histograms of ``train/ece``, and the frames of the two large files."""


def free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there; quotas are not known."""
    return shutil.disk_usage(folder).free


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
        NonFiniteError: as it came, with what a user can do.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):  # no disk's; a broken pipe is one: whoever read our output has gone
        raise
    except OSError as error:
        room = f", with {free_bytes(run_dir):,} bytes free there" if error.errno in NO_ROOM else ""
        raise StorageError(
            f"{error.filename or run_dir}: could not be written or read: {error.strerror or error}{room}. "
            f"{last_checkpoint(run_dir)} When the disk works and has room, continue with: {command}"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{sentence(error)} {last_checkpoint(run_dir)} The same command would meet the same batches again: lower "
            "optimizer.learning_rate (and optimizer.matrix_learning_rate) or trainer.max_grad_norm, and give another "
            f"hydra.run.dir. The command was: {command}"
        ) from error


def last_checkpoint(run_dir: Path) -> str:
    """A sentence about the newest checkpoint that verifies."""
    try:
        checkpoint = newest_checkpoint(run_dir)
    except CheckpointError as error:
        return sentence(error)
    if checkpoint is None:
        return "The run has no checkpoint yet."
    return f"The last good checkpoint is {checkpoint.path}, of step {checkpoint.step:,}."
