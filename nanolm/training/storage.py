"""Check free disk space before training, and turn I/O errors into clear messages.

Each says which file, how much space there is, which checkpoint is the last good one, and what to type to continue.
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
"""Configuration, manifest, the rows of ``train/ece``, and the headers of the two large files."""


def require_room(run_dir: Path, state: TrainingState, tokenizer_file: Path, command: str) -> None:
    """Check before the first step that a checkpoint can be written at all.

    Raises:
        StorageError: the folder of checkpoints cannot be made, or the disk has less space than one checkpoint takes.
    """
    folder = run_dir / "checkpoints"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: expected a folder for checkpoints, or none yet: {error.strerror}. No step was done. Remove "
            f"what is there, or give another hydra.run.dir; then: {command}"
        ) from None
    needed = state.num_bytes() + tokenizer_file.stat().st_size + SMALL_FILES_BYTES
    if (free := free_bytes(folder)) < needed:
        raise StorageError(
            f"{folder}: a checkpoint of this model takes about {needed:,} bytes, and {free:,} bytes are free there. "
            f"No step was done. Free at least {needed - free:,} bytes, or give a hydra.run.dir on another disk; "
            f"then: {command}"
        )


@contextlib.contextmanager
def explain_failures(run_dir: Path, command: str) -> Iterator[None]:
    """Add to an error that ends a run how far the run got and how to continue it.

    Raises:
        StorageError: in place of an OSError.
        OutOfMemoryError: in place of an allocation that failed.
        NonFiniteError: with what a user can do.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):  # not of a disk
        raise
    except OSError as error:
        raise StorageError(
            f"{failure(error, run_dir)}. {_last_checkpoint(run_dir)} When that is fixed, continue with: {command}"
        ) from error
    except OutOfMemoryError as error:
        raise OutOfMemoryError(f"{error} {_last_checkpoint(run_dir)} {OTHER_RUN} {command}") from error
    except (MemoryError, RuntimeError) as error:
        if (reason := out_of_memory(error)) is None:
            raise
        raise OutOfMemoryError(
            f"out of memory: {reason}. {_last_checkpoint(run_dir)} Choose a smaller model, evaluate.batch_size, "
            f"trainer.micro_batch_size or trainer.sequence_length. {OTHER_RUN} {command}"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{sentence(error)} {_last_checkpoint(run_dir)} The same command would meet the same batches again: lower "
            "optimizer.learning_rate (and optimizer.matrix_learning_rate) or trainer.max_grad_norm. "
            f"{OTHER_RUN} {command}"
        ) from error


def _last_checkpoint(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return f"{run_dir} is not there."
    try:
        checkpoint = newest_checkpoint(run_dir)
    except (CheckpointError, OSError) as error:
        return sentence(error)
    if checkpoint is None:
        return "The run has no checkpoint yet."
    return f"The last good checkpoint is {checkpoint.path}, of step {checkpoint.step:,}."
