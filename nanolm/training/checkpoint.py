"""Checkpoints that stand alone: a folder with weights, training state, configuration and tokenizer.

``manifest.json`` holds size and SHA-256 of every other file, and a checksum of its own content. The folder is written
under a temporary name and renamed when it is complete, so a folder without a valid manifest is not a checkpoint, and a
file that changed afterwards is detected.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

import nanolm
from nanolm.config import from_yaml, to_yaml
from nanolm.config.schema import TrainConfig
from nanolm.data import Tokenizer, load_tokenizer
from nanolm.errors import CheckpointError, NanolmError
from nanolm.files import Count, FileEntry, atomic_directory, check_file_table, file_table, read_record, remove_directory
from nanolm.metrics import Calibration
from nanolm.metrics.records import Record
from nanolm.model import GPT
from nanolm.training.state import TrainingState

FORMAT = 3
WEIGHTS, STATE, CONFIG, TOKENIZER, MANIFEST = (
    "model.safetensors",
    "training_state.pt",
    "config.yaml",
    "tokenizer.json",
    "manifest.json",
)
CALIBRATION = "calibration.json"
"""In the last checkpoint of a run only: its fitted temperature, or the reason why there is none."""

logger = logging.getLogger(__name__)


class OtherFormat(CheckpointError):
    """A checkpoint is whole, but was written by another version of nanolm."""


class Manifest(Record):
    """``manifest.json``; ``teacher`` is the SHA-256 of the weights that the run learns from."""

    format: int
    nanolm: str
    torch: str
    step: Count
    tokens: Count
    corpus: str
    teacher: str | None
    files: dict[str, FileEntry]
    checksum: str = ""

    def expected_checksum(self) -> str:
        """Return the SHA-256 of everything but the checksum itself."""
        content = self.model_dump(exclude={"checksum"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Return ``<run>/checkpoints/step-00001000``."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path,
    state: TrainingState,
    config: TrainConfig,
    tokenizer: Tokenizer,
    corpus_fingerprint: str,
    calibration: Calibration | None = None,
    teacher: str | None = None,
) -> Path:
    """Publish the state after its last completed step and return the checkpoint's folder.

    Args:
        calibration: the content of ``calibration.json``, in the last checkpoint of a run.
        teacher: SHA-256 of the teacher's weights, if there is a teacher.

    Raises:
        NonFiniteError: a weight or a moment is NaN or infinite; nothing was written.
        OSError: the disk is full or failing; checkpoints that were there before are untouched.
    """
    state.check_finite()
    path = checkpoint_path(run_dir, state.step)
    with _write_errors(path), atomic_directory(path) as folder:
        with _write_errors(path / WEIGHTS):
            safetensors.torch.save_file(state.model.state_dict(), folder / WEIGHTS)
        with _write_errors(path / STATE), open(folder / STATE, "wb") as file:
            torch.save(state.state_dict(), file)
        (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
        tokenizer.save(folder / TOKENIZER)
        if calibration is not None:
            (folder / CALIBRATION).write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
        manifest = Manifest(
            format=FORMAT,
            nanolm=nanolm.__version__,
            torch=torch.__version__,
            step=state.step,
            tokens=state.tokens,
            corpus=corpus_fingerprint,
            teacher=teacher,
            files=file_table(folder),
        )
        manifest = manifest.model_copy(update={"checksum": manifest.expected_checksum()})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise after a failed write back into an OSError that names a path."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        cause, named = error.__context__, re.search(r"\(os error (\d+)\)", str(error))
        number = cause.errno if isinstance(cause, OSError) else int(named[1]) if named else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def prune_checkpoints(run_dir: Path, keep: int, step: int) -> None:
    """Remove old checkpoints so that ``keep`` are left up to that of ``step``, which was just published.

    Newer ones are damaged, or the run would have continued from them; they do not count and are left as they are.
    """
    published = [path for path in _candidates(run_dir) if _step_of(path) <= step and _has_manifest(path)]
    for path in published[:-keep]:
        remove_directory(path)


def _candidates(run_dir: Path) -> list[Path]:
    """Return everything that has a checkpoint's name, oldest first."""
    named = (path for path in (run_dir / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(named, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _has_manifest(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is damaged, or of another format.
    """
    if not os.path.lexists(path / MANIFEST):
        raise CheckpointError(f"{path}: not a checkpoint, it has no {MANIFEST}")
    manifest = read_record(path / MANIFEST, Manifest, CheckpointError)
    if manifest.checksum != manifest.expected_checksum():
        raise CheckpointError(f"{path / MANIFEST}: its content does not match its checksum: the file is damaged")
    if manifest.format != FORMAT:
        raise OtherFormat(
            f"{path}: written by another version of nanolm (format {manifest.format}; this version reads format "
            f"{FORMAT}): use that version, or train again"
        )
    return manifest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all verified against its manifest."""

    path: Path
    manifest: Manifest
    config: TrainConfig
    tokenizer: Tokenizer

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self.manifest.step

    @property
    def run_dir(self) -> Path:
        """The run directory that contains it, or its parent folder if it was moved out of one."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def calibration(self) -> Calibration | None:
        """Return the content of ``calibration.json``; None if the checkpoint has none.

        Raises:
            CheckpointError: it is not what a run writes.
        """
        if CALIBRATION not in self.manifest.files:
            return None
        return read_record(self.path / CALIBRATION, Calibration, CheckpointError)

    def load_model(self, device: torch.device) -> GPT:
        """Return the model with its weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the configuration.
        """
        self._check_shapes()
        model = GPT(self.config.model, self.tokenizer.vocab_size)
        self.load_weights(model)
        return model.to(device).eval()

    def _check_shapes(self) -> None:
        """Compare the shapes in the file with the configuration, which could otherwise ask for any amount of memory."""
        path = self.path / WEIGHTS
        try:
            with safetensors.safe_open(path, "pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if self.config.model.num_hidden_layers > len(found):
                raise ValueError(f"{self.config.model.num_hidden_layers} blocks in {len(found)} tensors")
            with torch.device("meta"):  # no memory is taken
                model = GPT(self.config.model, self.tokenizer.vocab_size)
        except (safetensors.SafetensorError, RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path}: the weights do not fit the model: {error}") from None
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointError(
                    f"{path}: the weights do not fit the model: {name}: expected {expected.get(name)}, found "
                    f"{found.get(name)}"
                )

    def load_weights(self, model: GPT) -> None:
        """Copy the weights into a model of the same shape.

        Raises:
            CheckpointError: a tensor is missing, unknown, of another shape, or not finite.
        """
        path = self.path / WEIGHTS
        try:
            model.load_state_dict(safetensors.torch.load_file(path))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: the weights do not fit the model: {error}") from None
        for name, weight in model.state_dict().items():
            if not torch.isfinite(weight).all():
                raise CheckpointError(f"{path}: expected finite weights, found NaN or infinity in {name}")

    def load_state(self, state: TrainingState) -> None:
        """Restore weights, optimizer state and counters in place.

        Raises:
            CheckpointError: the stored state is that of another model or optimizer, or not a training state.
        """
        path = self.path / STATE
        self.load_weights(state.model)
        try:
            state.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except Exception as error:  # whatever torch, or a part of the state, raises for an untrusted file
            raise CheckpointError(f"{path}: not the training state of this run: {error!r}") from None
        if state.step != self.step:
            raise CheckpointError(
                f"{path}: not the training state of this checkpoint: expected step {self.step}, as in {MANIFEST}, "
                f"found step {state.step}"
            )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint folder and verify every file of it.

    Raises:
        CheckpointError: it is not a checkpoint, or one of its files is damaged.
    """
    manifest = read_manifest(path)
    try:
        check_file_table(path, manifest.files, CheckpointError)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if missing := {WEIGHTS, STATE, CONFIG, TOKENIZER} - manifest.files.keys():
        raise CheckpointError(f"{path / MANIFEST}: {', '.join(sorted(missing))} is not part of this checkpoint")
    try:
        config = from_yaml((path / CONFIG).read_text(encoding="utf-8"), TrainConfig)
        tokenizer = load_tokenizer(path / TOKENIZER)
    except (NanolmError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: this checkpoint cannot be used: {error}") from None
    return Checkpoint(path, manifest, config, tokenizer)


def find_checkpoint(path: str | Path | None, key: str = "checkpoint") -> Checkpoint:
    """Open what a user means by ``checkpoint=PATH``: one checkpoint folder, or the newest valid one of a run.

    ``key`` is the name of the configuration key in errors.

    Raises:
        CheckpointError: nothing was given, or there is nothing valid at the path.
    """
    if path is None:
        raise CheckpointError(f"{key}: give a run directory or a checkpoint, such as {key}=runs/NAME/TIME")
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise CheckpointError(f"{key}={path}: expected a run directory or a checkpoint folder, found {found} there")
    if (path / MANIFEST).exists():
        return open_checkpoint(path)
    checkpoint = newest_checkpoint(path)
    if checkpoint is None:
        raise CheckpointError(
            f"{key}={path}: expected a run directory with checkpoints/step-*/ in it, or one such folder; "
            "found neither there. A run publishes its first checkpoint after trainer.checkpoint_every steps."
        )
    return checkpoint


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Open the newest valid checkpoint of a run; return None if the run has no checkpoints.

    A damaged one is skipped with a warning. One without a manifest is damaged too: they are published complete.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    problems = []
    for path in reversed(_candidates(run_dir)):
        try:
            return open_checkpoint(path)
        except OtherFormat:
            raise  # those before it are no newer
        except CheckpointError as error:
            problems.append(str(error))
            logger.warning("%s; trying the checkpoint before it", error)
    if problems:
        raise CheckpointError(
            f"{run_dir}: every checkpoint of this run is damaged, so it cannot be continued: {'; '.join(problems)}. "
            "Restore one from a copy, or start again in another run directory."
        )
    return None
