"""One training run from text to page, in the order in which it happens.

The same call on the same directory continues the run. Batches, learning rates and dropout are functions of the seed
and the step, so a checkpoint holds weights, optimizer state and counters, and a run that was killed at any moment
ends as one that was left alone. ``nanolm.training.step`` is the step, ``nanolm.evaluation.scorer`` the evaluation.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanolm.config import to_yaml
from nanolm.config.schema import TrainConfig
from nanolm.data import Loader, PreparedCorpus
from nanolm.device import Compute, resolve_compute
from nanolm.errors import ConfigError
from nanolm.evaluation import Extras, Scorer
from nanolm.files import lock, sweep_leftovers, write_atomically
from nanolm.metrics import DURING_TRAINING, Calibration, CalibrationSize, Measurement
from nanolm.objective import loss_options
from nanolm.report import publish, reliability_lines, summary, write_run_page, write_split_page
from nanolm.sampling import sample, why_empty, with_temperature
from nanolm.stop import STOPPED, StopRequested, StopSignal
from nanolm.tracking import Console, Scalar, Tracker
from nanolm.training.checkpoint import checkpoint_path, newest_checkpoint, prune_checkpoints, save_checkpoint
from nanolm.training.objective import Objective, check_same_teacher, open_objective
from nanolm.training.resume import EVALUATION, check_same_run, new_state, restore, why_finished
from nanolm.training.setup import introduction, open_corpus, with_possible_prompt
from nanolm.training.state import TrainingState
from nanolm.training.step import TrainingStep, run_progress
from nanolm.training.storage import explain_failures, require_room


def train(config: TrainConfig, run_dir: Path, command: str) -> int:
    """Train, evaluate and publish; the same call on the same directory continues where the last one ended.

    Args:
        run_dir: the run directory, which exists.
        command: what the user types to continue this run.

    Returns:
        The exit code: 0 if the run is finished, 3 if it was stopped on request with a valid checkpoint.

    Raises:
        NanolmError: the input is wrong, or training failed.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="training"), explain_failures(run_dir, command):
        check_same_run(config, run_dir)
        trainer = config.trainer
        console = Console(trainer.max_steps, trainer.max_seconds, trainer.log_every)
        if finished := why_finished(config, run_dir):
            console.note(finished)
            console.result(str(run_dir))
            return 0

        compute = resolve_compute(trainer.device, trainer.precision)
        corpus = open_corpus(config, console)  # text → token shards, made once
        config = with_possible_prompt(config, corpus, console)
        loader = Loader(corpus.splits["train"], trainer.sequence_length, trainer.batch_size, config.seed)
        objective = open_objective(config, run_dir, corpus.tokenizer, compute)  # hidden states → NLL

        sweep_leftovers(run_dir / "checkpoints")
        state = new_state(config, corpus, compute)
        checkpoint = newest_checkpoint(run_dir)
        if checkpoint is not None:
            restore(state, checkpoint, config, corpus)
            check_same_teacher(checkpoint, objective)
        require_room(run_dir, state, corpus.folder / "tokenizer.json", command)

        is_new = checkpoint is None and not (run_dir / "config.yaml").exists()
        with Tracker.open(config, run_dir, None if is_new else state.step, console) as tracker, StopSignal() as stop:
            write_atomically(run_dir / "config.yaml", to_yaml(config))  # now that the metrics there are those of a run
            for stale in (run_dir / EVALUATION, *run_dir.glob("evaluation-*.json")):
                stale.unlink(missing_ok=True)
            options = loss_options(config.loss)
            scorer = Scorer(state.model, trainer.sequence_length, config.evaluate, options, compute, stop)
            published = checkpoint.step if checkpoint else None
            run = _Run(config, run_dir, corpus, objective, compute, state, tracker, scorer, published)
            for line in introduction(config, corpus, objective, compute, state, command):
                tracker.note(line)
            step = TrainingStep(state, loader, objective, config, compute, stop, tracker.note)
            try:
                run.train(step, stop)
                run.finish()
                exit_code = 0
            except StopRequested as signal:
                run.log()
                if run.published != state.step:
                    run.save()
                tracker.note(f"stopped by {signal} after step {state.step:,}; to continue from there: {command}")
                exit_code = STOPPED
        console.result(str(run_dir))
        return exit_code


@dataclass
class _Run:
    """A run whose parts are all there.

    Attributes:
        published: step of the newest checkpoint.
        calibration: known once the last step is done.
        line: metrics of the last step, until they are logged.
        started: when the run would have started if it had never been interrupted.
    """

    config: TrainConfig
    run_dir: Path
    corpus: PreparedCorpus
    objective: Objective
    compute: Compute
    state: TrainingState
    tracker: Tracker
    scorer: Scorer
    published: int | None
    calibration: Calibration | None = None
    line: dict[str, Scalar] | None = None
    started: float = 0.0

    def train(self, step: TrainingStep, stop: StopSignal) -> None:
        """Take steps until a limit is reached; evaluate, log and save where due. The last step is left to ``finish``.

        Raises:
            StopRequested: a signal came; the state is that after the last completed step.
        """
        state, trainer, val = self.state, self.config.trainer, self.corpus.splits["val"]
        self.started = time.monotonic() - state.seconds
        last = self.tracker.metrics.last
        if last and "val/nll" not in last and _is_due(state.step, trainer.eval_every) and not self.is_done:
            self.tracker.amend(_logged(self.scorer.measure(val)))  # the last start was stopped in this evaluation
        while not self.is_done:
            stop.check()
            self.line = step()
            self.tick()
            if self.is_done:
                break  # ``finish`` evaluates the last step and logs its line
            if _is_due(state.step, trainer.eval_every):
                self.line |= _logged(self.scorer.measure(val))
            self.log()
            if _is_due(state.step, trainer.checkpoint_every):
                self.save()

    def finish(self) -> None:
        """Fit the temperature, evaluate, save the last checkpoint, and leave what a finished run holds.

        ``evaluation.json`` is the last file: its presence says that the run is finished.
        """
        config, splits, run_dir, step = self.config, self.corpus.splits, self.run_dir, self.state.step
        self.calibration = self.scorer.fit_temperature(splits.get("calibration"))
        extras = Extras.all(self.calibration, splits["train"], self.corpus.tokenizer, config.loss)
        about: dict[str, Any] = {"corpus": self.corpus.fingerprint, "teacher": self.objective.teacher_settings}
        measured, evaluation = self.scorer.evaluate(splits["val"], step, extras, **about)
        if self.line is not None:
            self.line |= _logged(measured)
            self.log()
        elif "val/nll" not in (self.tracker.metrics.last or {}):
            self.tracker.amend(_logged(measured))
        self.save()

        for name in config.evaluate.further_splits:
            if name not in splits or splits[name].num_tokens == 0:
                self.tracker.note(f"evaluate.further_splits: this corpus has no {name} split; it is left out")
                continue
            further, scored = self.scorer.evaluate(splits[name], step, extras, **about)
            page = partial(write_split_page, run_dir, checkpoint_path(run_dir, step), scored)
            publish(run_dir, further, scored, page, f"-{name}")
            self.tracker.summary(*summary(scored))
        evaluation = evaluation.model_copy(update={"calibration_sizes": self.fit_by_size()})
        samples = "\n\n".join(self.draw_samples()) + "\n"
        write_atomically(run_dir / "samples.txt", samples)
        publish(run_dir, measured, evaluation, partial(write_run_page, run_dir, evaluation))

        self.tracker.console.result(samples)
        if self.calibration.reason is not None:
            self.tracker.note(f"no temperature was fitted: {self.calibration.reason}")
        self.tracker.summary(*summary(evaluation))
        self.tracker.report(run_dir / "report.html", reliability_lines(evaluation))

    @property
    def is_done(self) -> bool:
        """Whether a limit of steps or seconds is reached."""
        return run_progress(self.config.trainer, self.state.step, self.state.seconds) >= 1

    def tick(self) -> None:
        """Bring the seconds of the run up to now."""
        self.state.seconds = time.monotonic() - self.started

    def log(self) -> None:
        """Log the line of the last step, unless that was done."""
        if self.line is not None:
            self.tick()
            self.tracker.log(self.line | {"train/seconds": self.state.seconds})
            self.line = None

    def save(self) -> None:
        """Publish the state as it is; older checkpoints are removed only after that."""
        self.tracker.sync()
        save_checkpoint(
            self.run_dir,
            self.state,
            self.config,
            self.corpus.tokenizer,
            self.corpus.fingerprint,
            self.calibration,
            self.objective.teacher,
        )
        self.published = self.state.step
        prune_checkpoints(self.run_dir, self.config.trainer.keep_checkpoints, self.state.step)

    def fit_by_size(self) -> list[CalibrationSize]:
        """Fit the temperature at each of ``evaluate.calibration_sizes``."""
        sizes, calibration = self.config.evaluate.calibration_sizes, self.corpus.splits.get("calibration")
        num_tokens = calibration.num_tokens if calibration else 0
        if max(sizes, default=0) > num_tokens:
            self.tracker.note(
                f"evaluate.calibration_sizes: the calibration split has {num_tokens:,} tokens; larger sizes are left "
                "out"
            )
        if not sizes or calibration is None:
            return []
        return self.scorer.temperature_by_size(calibration, self.corpus.splits["val"], sizes)

    def draw_samples(self) -> list[str]:
        """Draw the texts of ``sample.*``; at temperature 1 if the fitted one was asked for and there is none.

        A text with nothing to read after its prompt gives the reason in brackets.
        """
        config, calibration = self.config, self.calibration
        assert calibration is not None, "fitted before"
        if calibration.value is None and config.sample.temperature == "fitted":
            self.tracker.note(f"sample.temperature=fitted: {calibration.reason}; drawn at temperature 1 instead")
        texts = sample(
            self.state.model,
            self.corpus.tokenizer,
            with_temperature(config.sample, calibration.value or 1.0, ""),
            config.seed,
            config.trainer.sequence_length,
            self.scorer.loss,
            self.compute,
        )
        reasons = [why_empty(text, config.sample.prompt) for text in texts]
        return [f"{text}\n[{reason}]" if reason else text for text, reason in zip(texts, reasons, strict=True)]


def _logged(measured: Measurement) -> dict[str, Scalar]:
    metrics = measured.metrics()
    return {f"val/{name}": metrics[name] for name in DURING_TRAINING}


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
