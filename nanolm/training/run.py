"""One training run from configuration to ``evaluation.json``, new or continued."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nanolm.config import flatten, from_yaml, to_yaml
from nanolm.config.schema import TrainConfig
from nanolm.data import Loader, PreparedCorpus, open_prepared, prepare
from nanolm.device import Compute, measure_peak_flops, resolve_compute
from nanolm.errors import CheckpointError, ConfigError, DataError
from nanolm.evaluation import (
    Evaluation,
    Extras,
    FittedTemperature,
    calibration_json,
    evaluate,
    frequency_groups,
    summary_values,
    table,
    try_fit_on_split,
)
from nanolm.files import lock, sweep_leftovers, write_atomically
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.sampling import encode_prompt, sample, with_temperature
from nanolm.tracking import Console, Tracker
from nanolm.training.checkpoint import Checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from nanolm.training.loop import TrainingLoop, loss_options, run_progress
from nanolm.training.state import TrainingState
from nanolm.training.stop import StopRequested
from nanolm.training.storage import failures_told, require_room

WriteReport = Callable[[Path, dict[str, Any]], bytes]

STOPPED = 3
EVALUATION = "evaluation.json"

# A continued run may differ in these: they change what is kept and shown, never what is computed; and in its length.
CHANGEABLE = (
    "name",
    "data.root",
    "data.path",
    "trainer.max_steps",
    "trainer.max_seconds",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.log_every",
    "trainer.resume",
    "sample.",
    "wandb.",
)


def train(config: TrainConfig, run_dir: Path, command: str, write_report: WriteReport) -> int:
    """Train, evaluate and publish; the same call on the same directory continues where the last one ended.

    Args:
        config: the run's configuration.
        run_dir: the run directory, which exists.
        command: what the user types to continue this run; printed at the start.
        write_report: makes ``report.html`` from the run directory and the content of ``evaluation.json``, which
            is published after it as the last of all files; returns the reliability diagram as PNG.

    Returns:
        The exit code: 0 when the run is finished, 3 when it was stopped on request with a valid checkpoint.

    Raises:
        NanolmError: the input is wrong, or training failed.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="training"), failures_told(run_dir, command):
        _check_same_run(config, run_dir)
        if _is_finished(config, run_dir):
            return 0
        trainer = config.trainer
        console = Console(trainer.max_steps, trainer.max_seconds, trainer.log_every)
        compute = resolve_compute(trainer.device, trainer.precision)
        corpus = _open_corpus(config, console)
        config = _with_possible_prompt(config, corpus, console)
        loader = Loader(corpus.splits["train"], trainer.sequence_length, trainer.batch_size, config.seed)
        sweep_leftovers(run_dir / "checkpoints")
        checkpoint = newest_checkpoint(run_dir)
        state = _build_state(config, checkpoint, corpus, compute)
        require_room(run_dir, state, corpus.folder / "tokenizer.json", command)

        begun = checkpoint is not None or (run_dir / "config.yaml").exists()
        logged_step = state.step - bool(state.unlogged) if begun else None
        write_atomically(run_dir / "config.yaml", to_yaml(config))
        (run_dir / EVALUATION).unlink(missing_ok=True)
        with Tracker.open(config, run_dir, logged_step, console) as tracker:
            run = _Run(config, run_dir, corpus, state, compute, tracker, checkpoint.step if checkpoint else None)
            run.introduce(command)
            loop = TrainingLoop(state, loader, config, compute, measure_peak_flops(compute))
            exit_code = run.train_and_finish(loop, write_report)
        console.result(str(run_dir))
        return exit_code


@dataclass
class _Run:
    """A run whose parts are all there."""

    config: TrainConfig
    run_dir: Path
    corpus: PreparedCorpus
    state: TrainingState
    compute: Compute
    tracker: Tracker
    published: int | None
    """The step of the newest checkpoint."""
    calibration: FittedTemperature | str | None = None
    """Known once the last step is done: the fitted temperature, or the reason why there is none."""

    def introduce(self, command: str) -> None:
        """Say what is about to be done."""
        config, trainer, train_split = self.config, self.config.trainer, self.corpus.splits["train"]
        limits = [f"{trainer.max_steps:,} steps"] if trainer.max_steps else []
        limits += [f"{trainer.max_seconds:,.0f} seconds"] if trainer.max_seconds else []
        note = self.tracker.note
        note(
            f"corpus: {config.data.name}, {train_split.num_documents:,} documents, {train_split.num_tokens:,} tokens "
            f"to train on, vocabulary of {self.corpus.tokenizer.vocab_size:,}"
        )
        note(f"model: {config.model.name}, {self.state.model.num_parameters():,} parameters, on {self.compute}")
        note(f"length: {' or '.join(limits)} of {trainer.batch_size * trainer.sequence_length:,} tokens")
        if self.state.step:
            note(f"continuing after step {self.state.step:,}")
        note(f"to continue this run after an interruption: {command}")

    def train_and_finish(self, loop: TrainingLoop, write_report: WriteReport) -> int:
        """Run the loop, then leave what a finished run holds; ``evaluation.json`` is the last file."""
        with loop.stop:
            try:
                evaluation = loop.run(self.tracker, lambda: self.evaluate(loop), self.publish_checkpoint)
                if evaluation is None:  # the steps were all done before; what follows them was not
                    evaluation = self.evaluate(loop)
                    self.publish_checkpoint()
            except StopRequested as signal:
                if self.published != self.state.step:
                    self.publish_checkpoint()
                self.tracker.note(
                    f"stopped by {signal} after step {self.state.step:,}; the same command continues from there"
                )
                return STOPPED
            samples = self.draw_samples()
            write_atomically(self.run_dir / "samples.txt", "\n\n".join(samples) + "\n")
            evaluation.write_documents(self.run_dir / "documents-val.npz")
            fitted = self.calibration if isinstance(self.calibration, FittedTemperature) else None
            content = evaluation.as_json(self.state.step, fitted.interval if fitted else None)
            content["calibration"] = self.calibration_json()
            diagram = write_report(self.run_dir, content)
            self.show(content, samples, diagram)
            write_atomically(self.run_dir / EVALUATION, json.dumps(content, indent=2) + "\n")
        return 0

    def evaluate(self, loop: TrainingLoop) -> Evaluation:
        """Score val; after the last step also at the temperature that is fitted before. A signal ends either."""
        config, corpus, extras = self.config, self.corpus, Extras()

        def look_for_signal(*_: int) -> None:
            loop.stop.check()

        how = (config.trainer.sequence_length, config.evaluate, loss_options(config), self.compute, look_for_signal)
        if loop.finished:
            self.calibration = try_fit_on_split(self.state.model, corpus.splits.get("calibration"), *how)
            fitted = self.calibration.fit.temperature if isinstance(self.calibration, FittedTemperature) else None
            tokenizer = corpus.tokenizer
            groups = frequency_groups(corpus.splits["train"], tokenizer.vocab_size, tokenizer.end_of_text_id)
            extras = Extras(fitted, groups)
        return evaluate(self.state.model, corpus.splits["val"], *how, extras)

    def calibration_json(self) -> dict[str, Any] | None:
        """The content of ``calibration.json``; None before the last step."""
        return None if self.calibration is None else calibration_json(self.calibration)

    def publish_checkpoint(self) -> None:
        """Publish the state as it is; older checkpoints go only after that."""
        self.tracker.sync()
        save_checkpoint(
            self.run_dir,
            self.state,
            self.config,
            self.corpus.tokenizer,
            self.corpus.fingerprint,
            self.calibration_json(),
        )
        self.published = self.state.step
        prune_checkpoints(self.run_dir, self.config.trainer.keep_checkpoints, self.state.step)

    def draw_samples(self) -> list[str]:
        """The texts of ``sample.*``; at temperature 1 where the fitted one was wanted and there is none."""
        config = self.config
        fitted = 1.0
        if isinstance(self.calibration, FittedTemperature):
            fitted = self.calibration.fit.temperature
        elif config.sample.temperature == "fitted":
            self.tracker.note(f"sample.temperature=fitted: {self.calibration}; the samples are drawn at temperature 1")
        return sample(
            self.state.model,
            self.corpus.tokenizer,
            with_temperature(config.sample, fitted, ""),
            config.seed,
            config.trainer.sequence_length,
            loss_options(config),
            self.compute,
        )

    def show(self, content: dict[str, Any], samples: list[str], diagram: bytes) -> None:
        """Print samples and table, and mirror the figures and the report."""
        self.tracker.console.result("\n\n".join(samples) + "\n")
        if isinstance(self.calibration, str):
            self.tracker.note(f"no temperature was fitted: {self.calibration}")
        self.tracker.summary(*table(content), summary_values(content))
        lines = {f"T = {name}": line for name, line in content["reliability"].items()}
        self.tracker.report(self.run_dir / "report.html", diagram, lines)


def _is_finished(config: TrainConfig, run_dir: Path) -> bool:
    path = run_dir / EVALUATION
    if not path.exists():
        return False
    try:
        step = int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: not the evaluation of a run; remove it to evaluate the run again") from None
    by_time = config.trainer.max_seconds is not None
    if not by_time and run_progress(config.trainer, step, 0.0) < 1:
        return False
    console = Console()
    console.note(f"{run_dir}: this run is finished ({step:,} steps, {EVALUATION} is there), so there is nothing to do.")
    console.note("For a longer one raise trainer.max_steps; for a new one give another hydra.run.dir, or none.")
    console.result(str(run_dir))
    return True


def _check_same_run(config: TrainConfig, run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    try:
        before = from_yaml(path.read_text(encoding="utf-8"), TrainConfig)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: expected the configuration of this run: {error}. Copy config.yaml there from one of its "
            "checkpoints, or give another hydra.run.dir for a new run."
        ) from None
    if differing := _differences(before, config):
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


def _differences(there: TrainConfig, config: TrainConfig) -> list[str]:
    """What a continued run may not differ in, one line a key."""
    before, now = flatten(there), flatten(config)
    return [
        f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(CHANGEABLE)
    ]


def _open_corpus(config: TrainConfig, console: Console) -> PreparedCorpus:
    with console.progress(f"tokenizing {config.data.name}") as progress:
        folder = prepare(config.data, config.tokenizer, progress)
    corpus = open_prepared(folder)
    for name in ("train", "val"):
        if name not in corpus.splits or corpus.splits[name].num_tokens == 0:
            raise DataError(f"data={config.data.name}: the {name} split is empty; give more text, or raise its share")
    return corpus


def _with_possible_prompt(config: TrainConfig, corpus: PreparedCorpus, console: Console) -> TrainConfig:
    """The configuration, with an empty prompt where the vocabulary lacks the given one: that must not cost a run."""
    try:
        encode_prompt(corpus.tokenizer, config.sample)
    except DataError as error:
        console.note(f"sample.{error} The samples will begin a new document instead.")
        return replace(config, sample=replace(config.sample, prompt=""))
    return config


def _build_state(
    config: TrainConfig, checkpoint: Checkpoint | None, corpus: PreparedCorpus, compute: Compute
) -> TrainingState:
    """A new state, or that of a checkpoint."""
    torch.manual_seed(config.seed)
    model = GPT(config.model, corpus.tokenizer.vocab_size).to(compute.device)
    state = TrainingState(model, build_optimizer(model, config.optimizer))
    if checkpoint is None:
        return state
    differing = _differences(checkpoint.config, config)
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
    try:
        checkpoint.load_state(state)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Nothing was changed. Move {checkpoint.path} away to continue from the checkpoint before it, or "
            "give another hydra.run.dir for a new run."
        ) from None
    return state
