"""Checkpoints that stand alone: a folder with weights, training state, configuration and tokenizer.

``manifest.json`` holds size and SHA-256 of every file beside it. The folder is written under a temporary name and
renamed when it is whole, so a folder without a valid manifest is not a checkpoint, and a file that
changed afterwards is noticed; so is a change of the manifest, which holds a checksum of its own content.
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
from typing import Any

import safetensors
import safetensors.torch
import torch

import nanolm
from nanolm.config import from_yaml, to_yaml
from nanolm.config.schema import TrainConfig
from nanolm.data import Tokenizer, load_tokenizer
from nanolm.errors import CheckpointError, NanolmError
from nanolm.evaluation.calibration_file import parse_calibration
from nanolm.files import atomic_directory, check_file_table, file_table, parse_json, remove_directory, why_no_file
from nanolm.model import GPT
from nanolm.training.state import TrainingState

FORMAT = 2
WEIGHTS, STATE, CONFIG, TOKENIZER, MANIFEST = (
    "model.safetensors",
    "training_state.pt",
    "config.yaml",
    "tokenizer.json",
    "manifest.json",
)
EVALUATION = "evaluation.json"
"""The last file of a finished run, in its directory."""
CALIBRATION = "calibration.json"
"""In the last checkpoint of a run only: its fitted temperature, or the reason why there is none."""

logger = logging.getLogger(__name__)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """``<run>/checkpoints/step-00001000``"""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def save_checkpoint(
    run_dir: Path,
    state: TrainingState,
    config: TrainConfig,
    tokenizer: Tokenizer,
    corpus_fingerprint: str,
    calibration: dict[str, Any] | None = None,
    teacher: str | None = None,
) -> Path:
    """Publish the state after its last completed step; returns the checkpoint's folder.

    ``calibration`` is the content of ``calibration.json`` where the temperature was fitted; ``teacher`` the SHA-256 of
    the weights that the run learns from, where there is a teacher.

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
            (folder / CALIBRATION).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
        manifest = {
            "format": FORMAT,
            "nanolm": nanolm.__version__,
            "torch": torch.__version__,
            "step": state.step,
            "tokens": state.tokens,
            "corpus": corpus_fingerprint,
            "teacher": teacher,
            "files": file_table(folder),
        }
        text = json.dumps(manifest | {"checksum": manifest_checksum(manifest)}, indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors make of a failed write back into an OSError, and have every one name a path."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except (RuntimeError, safetensors.SafetensorError) as error:
        cause, told = error.__context__, re.search(r"\(os error (\d+)\)", str(error))
        number = cause.errno if isinstance(cause, OSError) else int(told[1]) if told else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def manifest_checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content without its own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prune_checkpoints(run_dir: Path, keep: int, step: int) -> None:
    """Remove checkpoints before that of ``step``, just published, so that ``keep`` are left with it.

    Newer ones are damaged, or the run would have gone on from them. They count for nothing and are left as they are.
    """
    for path in [path for path in list_checkpoints(run_dir) if step_of(path) <= step][:-keep]:
        remove_directory(path)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of a run that have a checkpoint's name and a manifest that can be read, oldest first."""
    return [path for path in _candidates(run_dir) if _is_checkpoint(path)]


def _candidates(run_dir: Path) -> list[Path]:
    """All that has a checkpoint's name, oldest first."""
    named = (path for path in (run_dir / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(named, key=step_of)


def _is_checkpoint(path: Path) -> bool:
    try:
        read_manifest(path)
    except CheckpointError:
        return False
    return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    if os.path.lexists(path / MANIFEST) and (reason := why_no_file(path / MANIFEST)):
        raise CheckpointError(f"{path / MANIFEST}: {reason}")
    try:
        manifest = parse_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not a checkpoint, it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST}: not the manifest of a checkpoint: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST}: expected a checkpoint's manifest of format {FORMAT}, found {manifest!r:.60}"
        )
    if manifest.get("checksum") != manifest_checksum(manifest):
        raise CheckpointError(f"{path / MANIFEST}: its content is not that of its checksum: the file is damaged")
    step = manifest.get("step")
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise CheckpointError(f"{path / MANIFEST}: expected a number of steps under 'step', found {step!r:.60}")
    return manifest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all verified against its manifest."""

    path: Path
    manifest: dict[str, Any]
    config: TrainConfig
    tokenizer: Tokenizer

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return int(self.manifest["step"])

    @property
    def run_dir(self) -> Path:
        """The run directory it lies in, or the folder beside it when it was moved out of one."""
        return self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path.parent

    def calibration(self) -> dict[str, Any] | None:
        """The content of ``calibration.json``: a fitted ``temperature``, or null with a ``reason``; None without one.

        Raises:
            CheckpointError: it is not what a run writes.
        """
        if CALIBRATION not in self.manifest["files"]:
            return None
        path = self.path / CALIBRATION
        try:
            return parse_calibration(path.read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: expected a fitted temperature, found another content: {error}") from None

    def fitted_temperature(self) -> tuple[float | None, str]:
        """The fitted temperature; None with the reason, and what to do, where there is none."""
        calibration = self.calibration()
        if calibration is None:
            return None, (
                f"{self.path} has no fitted temperature: it is not the last checkpoint of a finished run. Finish the "
                "run: its train.log has the command that continues it"
            )
        if calibration["temperature"] is None:
            return None, f"{self.path} has no fitted temperature: {calibration['reason']}"
        return float(calibration["temperature"]["value"]), ""

    def load_model(self, device: torch.device) -> GPT:
        """The model with its weights, in evaluation mode.

        Raises:
            CheckpointError: the weights are not those of the configuration.
        """
        self._check_shapes()
        model = GPT(self.config.model, self.tokenizer.vocab_size)
        self.load_weights(model)
        return model.to(device).eval()

    def _check_shapes(self) -> None:
        """Compare the shapes in the file with the configuration, a few words of which could ask for any memory."""
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
        try:
            model.load_state_dict(safetensors.torch.load_file(self.path / WEIGHTS))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{self.path / WEIGHTS}: the weights do not fit the model: {error}") from None
        for name, weight in model.state_dict().items():
            if not torch.isfinite(weight).all():
                raise CheckpointError(
                    f"{self.path / WEIGHTS}: expected finite weights, found NaN or infinity in {name}"
                )

    def load_state(self, state: TrainingState) -> None:
        """Restore weights, optimizer state and counters in place.

        Raises:
            CheckpointError: the stored state is of another model or optimizer, or not a training state.
        """
        self.load_weights(state.model)
        try:
            stored = torch.load(self.path / STATE, map_location="cpu", weights_only=True)
            state.load_state_dict(stored)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path / STATE}: {error}") from None
        except Exception as error:  # whatever torch, or a part of the state, stumbles over in a stranger's file
            raise CheckpointError(f"{self.path / STATE}: not the training state of this run: {error!r}") from None
        if state.step != self.step:
            raise CheckpointError(
                f"{self.path / STATE}: not the training state of this checkpoint: expected step {self.step}, as in "
                f"{MANIFEST}, found step {state.step}"
            )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint folder, every file of it verified.

    Raises:
        CheckpointError: it is not a checkpoint, or one of its files is damaged.
    """
    manifest = read_manifest(path)
    try:
        check_file_table(path, manifest.get("files"), CheckpointError)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    missing = {WEIGHTS, STATE, CONFIG, TOKENIZER} - manifest["files"].keys()
    if missing:
        raise CheckpointError(f"{path / MANIFEST}: {', '.join(sorted(missing))} is not part of this checkpoint")
    try:
        config = from_yaml((path / CONFIG).read_text(encoding="utf-8"), TrainConfig)
        tokenizer = load_tokenizer(path / TOKENIZER)
    except (NanolmError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: this checkpoint cannot be used: {error}") from None
    return Checkpoint(path, manifest, config, tokenizer)


def find_checkpoint(path: str | Path | None, key: str = "checkpoint") -> Checkpoint:
    """What a user means by ``checkpoint=PATH``: one checkpoint folder, or a run whose newest valid one is taken.

    ``key`` is what an error calls it.

    Raises:
        CheckpointError: nothing was given, there is nothing, or nothing valid, at the path.
    """
    if path is None:
        raise CheckpointError(f"{key}: give a run directory or a checkpoint, as {key}=runs/NAME/TIME")
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
    """The newest checkpoint of a run that verifies; None if the run has none at all.

    A damaged one is passed over with a warning. One without a manifest is damaged too: they are published whole.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    problems = []
    for path in reversed(_candidates(run_dir)):
        try:
            return open_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            logger.warning("%s; trying the checkpoint before it", error)
    if problems:
        raise CheckpointError(
            f"{run_dir}: every checkpoint of this run is damaged, so it cannot be continued: {'; '.join(problems)}. "
            "Restore one from a copy, or start again in another run directory."
        )
    return None
