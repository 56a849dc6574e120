"""One training run from configuration to ``evaluation.json``, new or continued."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanolm.config import to_yaml
from nanolm.config.schema import EvaluateConfig, TrainConfig
from nanolm.data import Loader, PreparedCorpus, open_prepared, prepare
from nanolm.device import Compute, measure_peak_flops, resolve_compute
from nanolm.errors import ConfigError, DataError, sentence
from nanolm.evaluation import (
    Evaluation,
    Extras,
    FittedTemperature,
    all_extras,
    calibration_json,
    evaluate,
    summary_values,
    table,
    temperature_by_size,
    try_fit_on_split,
)
from nanolm.files import lock, sweep_leftovers, write_atomically
from nanolm.loss import LossOptions
from nanolm.sampling import encode_prompt, sample, why_empty, with_temperature
from nanolm.tracking import Console, Tracker
from nanolm.training.checkpoint import (
    EVALUATION,
    checkpoint_path,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from nanolm.training.loop import TrainingLoop, loss_options
from nanolm.training.objective import Likelihood, open_objective
from nanolm.training.resume import build_state, check_same_run, is_finished
from nanolm.training.state import TrainingState
from nanolm.training.stop import StopRequested
from nanolm.training.storage import failures_told, require_room

WriteReport = Callable[[Path, dict[str, Any]], bytes]
WriteSplitReport = Callable[[Path, Path, dict[str, Any]], None]

HowToScore = tuple[int, EvaluateConfig, LossOptions, Compute, Callable[..., None]]

STOPPED = 3


def train(
    config: TrainConfig,
    run_dir: Path,
    command: str,
    write_report: WriteReport,
    write_split_report: WriteSplitReport = lambda folder, checkpoint, content: None,
) -> int:
    """Train, evaluate and publish; the same call on the same directory continues where the last one ended.

    Args:
        config: the run's configuration.
        run_dir: the run directory, which exists.
        command: what the user types to continue this run; printed at the start.
        write_report: makes ``report.html`` from the run directory and the content of ``evaluation.json``, which
            is published after it as the last of all files; returns the reliability diagram as PNG.
        write_split_report: makes ``report-<split>.html`` of each of ``evaluate.further_splits`` from the run
            directory, the checkpoint's folder and the content of ``evaluation-<split>.json``.

    Returns:
        The exit code: 0 when the run is finished, 3 when it was stopped on request with a valid checkpoint.

    Raises:
        NanolmError: the input is wrong, or training failed.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="training"), failures_told(run_dir, command):
        check_same_run(config, run_dir)
        if is_finished(config, run_dir):
            return 0
        trainer = config.trainer
        console = Console(trainer.max_steps, trainer.max_seconds, trainer.log_every)
        compute = resolve_compute(trainer.device, trainer.precision)
        corpus = _open_corpus(config, console)
        config = _with_possible_prompt(config, corpus, console)
        loader = Loader(corpus.splits["train"], trainer.sequence_length, trainer.batch_size, config.seed)
        objective = open_objective(config, run_dir, corpus.tokenizer, compute)
        sweep_leftovers(run_dir / "checkpoints")
        checkpoint = newest_checkpoint(run_dir)
        state = build_state(config, checkpoint, corpus, compute, objective)
        require_room(run_dir, state, corpus.folder / "tokenizer.json", command)

        begun = checkpoint is not None or (run_dir / "config.yaml").exists()
        logged_step = state.step - bool(state.unlogged) if begun else None
        write_atomically(run_dir / "config.yaml", to_yaml(config))
        for stale in (run_dir / EVALUATION, *run_dir.glob("evaluation-*.json")):
            stale.unlink(missing_ok=True)
        with Tracker.open(config, run_dir, logged_step, console) as tracker:
            published = checkpoint.step if checkpoint else None
            run = _Run(config, run_dir, command, corpus, state, compute, tracker, objective, published)
            run.introduce()
            loop = TrainingLoop(state, loader, config, compute, measure_peak_flops(compute), objective)
            exit_code = run.train_and_finish(loop, write_report, write_split_report)
        console.result(str(run_dir))
        return exit_code


@dataclass
class _Run:
    """A run whose parts are all there."""

    config: TrainConfig
    run_dir: Path
    command: str
    """what continues this run"""
    corpus: PreparedCorpus
    state: TrainingState
    compute: Compute
    tracker: Tracker
    objective: Likelihood
    published: int | None
    """The step of the newest checkpoint."""
    calibration: FittedTemperature | str | None = None
    """Known once the last step is done: the fitted temperature, or the reason why there is none."""

    def introduce(self) -> None:
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
        for about_teacher in self.objective.notes:
            note(about_teacher)
        note(f"length: {' or '.join(limits)} of {trainer.batch_size * trainer.sequence_length:,} tokens")
        if self.state.step:
            note(f"continuing after step {self.state.step:,}")
        note(f"to continue this run after an interruption: {self.command}")

    def train_and_finish(
        self, loop: TrainingLoop, write_report: WriteReport, write_split_report: WriteSplitReport
    ) -> int:
        """Run the loop, then leave what a finished run holds; ``evaluation.json`` is the last file."""
        with loop.stop:
            try:
                evaluation = loop.run(self.tracker, lambda last: self.evaluate(loop, last), self.publish_checkpoint)
                if evaluation is None:  # the steps are all done; what follows them is not
                    evaluation = self.evaluate(loop, last=True)
                    self.publish_checkpoint()
                self.score_further_splits(loop, write_split_report)
                by_size = self.fit_by_size(loop)
            except StopRequested as signal:
                if self.published != self.state.step:
                    self.publish_checkpoint()
                self.tracker.note(
                    f"stopped by {signal} after step {self.state.step:,}; to continue from there: {self.command}"
                )
                return STOPPED
            samples = self.draw_samples()
            write_atomically(self.run_dir / "samples.txt", "\n\n".join(samples) + "\n")
            evaluation.write_documents(self.run_dir / "documents-val.npz")
            content = self.content(evaluation) | {"calibration_sizes": by_size}
            diagram = write_report(self.run_dir, content)
            write_atomically(self.run_dir / EVALUATION, json.dumps(content, indent=2) + "\n")
            self.show(content, samples, diagram)
        return 0

    def evaluate(self, loop: TrainingLoop, last: bool) -> Evaluation:
        """Score val; after the last step also at the temperature that is fitted before. A signal ends either."""
        how, extras = self.how_to_score(loop), Extras()
        if last:
            self.calibration = try_fit_on_split(self.state.model, self.corpus.splits.get("calibration"), *how)
            extras = self.extras()
        return evaluate(self.state.model, self.corpus.splits["val"], *how, extras)

    def how_to_score(self, loop: TrainingLoop) -> HowToScore:
        """What ``evaluate`` and the fit of the temperature take behind the split; a signal ends them."""
        config = self.config

        def look_for_signal(*_: int) -> None:
            loop.stop.check()

        return config.trainer.sequence_length, config.evaluate, loss_options(config), self.compute, look_for_signal

    def extras(self) -> Extras:
        """What is scored after the last step besides the model's own probabilities."""
        tokenizer, train = self.corpus.tokenizer, self.corpus.splits["train"]
        fitted = self.calibration.fit.temperature if isinstance(self.calibration, FittedTemperature) else None
        return all_extras(fitted, train, tokenizer.vocab_size, tokenizer.end_of_text_id, self.config.loss)

    def content(self, evaluation: Evaluation) -> dict[str, Any]:
        """What ``evaluation*.json`` says of a split."""
        fitted = self.calibration if isinstance(self.calibration, FittedTemperature) else None
        content = evaluation.as_json(self.state.step, fitted.interval if fitted else None)
        return content | {
            "corpus": self.corpus.fingerprint,
            "teacher": self.objective.teacher_settings,
            "calibration": self.calibration_json(),
        }

    def score_further_splits(self, loop: TrainingLoop, write_report: WriteSplitReport) -> None:
        """Leave what ``scripts/evaluate.py`` would of each of ``evaluate.further_splits``."""
        for name in self.config.evaluate.further_splits:
            split = self.corpus.splits.get(name)
            if split is None or split.num_tokens == 0:
                self.tracker.note(f"evaluate.further_splits: this corpus has no {name} split; it is left out")
                continue
            evaluation = evaluate(self.state.model, split, *self.how_to_score(loop), self.extras())
            evaluation.write_documents(self.run_dir / f"documents-{name}.npz")
            content = self.content(evaluation)
            write_report(self.run_dir, checkpoint_path(self.run_dir, self.state.step), content)
            write_atomically(self.run_dir / f"evaluation-{name}.json", json.dumps(content, indent=2) + "\n")
            self.tracker.summary(*table(content), summary_values(content))

    def fit_by_size(self, loop: TrainingLoop) -> list[dict[str, Any]]:
        """The temperature at each of ``evaluate.calibration_sizes``; nothing where none was asked for."""
        sizes, calibration = self.config.evaluate.calibration_sizes, self.corpus.splits.get("calibration")
        num_tokens = calibration.num_tokens if calibration else 0
        if max(sizes, default=0) > num_tokens:
            self.tracker.note(
                f"evaluate.calibration_sizes: the calibration split has {num_tokens:,} tokens; larger sizes are left "
                "out"
            )
        if not sizes or calibration is None:
            return []
        how = self.how_to_score(loop)
        return temperature_by_size(self.state.model, calibration, self.corpus.splits["val"], sizes, *how)

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
            self.objective.teacher,
        )
        self.published = self.state.step
        prune_checkpoints(self.run_dir, self.config.trainer.keep_checkpoints, self.state.step)

    def draw_samples(self) -> list[str]:
        """The texts of ``sample.*``; at temperature 1 where the fitted one was wanted and there is none.

        A text with nothing to read after its prompt says why, in brackets.
        """
        config = self.config
        fitted = 1.0
        if isinstance(self.calibration, FittedTemperature):
            fitted = self.calibration.fit.temperature
        elif config.sample.temperature == "fitted":
            self.tracker.note(f"sample.temperature=fitted: {self.calibration}; the samples are drawn at temperature 1")
        texts = sample(
            self.state.model,
            self.corpus.tokenizer,
            with_temperature(config.sample, fitted, ""),
            config.seed,
            config.trainer.sequence_length,
            loss_options(config),
            self.compute,
        )
        reasons = [why_empty(text, config.sample.prompt) for text in texts]
        return [f"{text}\n[{reason}]" if reason else text for text, reason in zip(texts, reasons, strict=True)]

    def show(self, content: dict[str, Any], samples: list[str], diagram: bytes) -> None:
        """Print samples and table, and mirror the figures and the report."""
        self.tracker.console.result("\n\n".join(samples) + "\n")
        if isinstance(self.calibration, str):
            self.tracker.note(f"no temperature was fitted: {self.calibration}")
        self.tracker.summary(*table(content), summary_values(content))
        lines = {f"T = {name}": line for name, line in content["reliability"].items()}
        self.tracker.report(self.run_dir / "report.html", diagram, lines)


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
        console.note(f"sample.{sentence(error)} The samples will begin a new document instead.")
        return replace(config, sample=replace(config.sample, prompt=""))
    return config
