"""Run one baseline, from configuration to ``evaluation.json``. A killed run starts over: it takes a minute."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nanolm.classifiers.cross_validation import CrossValidation
from nanolm.classifiers.datasets import load_dataset
from nanolm.classifiers.evaluation import ClassifierEvaluation, FoldSummary, TaskSummary
from nanolm.classifiers.page import MEANINGS, separation_rows, separation_words, title, write_classifier_page
from nanolm.classifiers.separation import study_separation
from nanolm.config import check_same_config, flatten, to_yaml
from nanolm.config.schema import BaselineConfig
from nanolm.errors import ConfigError
from nanolm.files import lock, write_atomically
from nanolm.metrics import Measurement
from nanolm.report import publish, reliability_lines, summary
from nanolm.report.pages import calibrator_rows
from nanolm.tracking import Console, Scalar, Throughput, Tracker
from nanolm.tracking.tables import aligned


def run_baseline(config: BaselineConfig, run_dir: Path, command: str) -> int:
    """Cross-validate, measure and publish; leave a finished run of the same configuration as it is.

    ``run_dir`` exists, and ``command``, which runs it again, is printed at the start. Return the exit code, 0.

    Raises:
        NanolmError: the input is wrong, or the loss became NaN.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="running a baseline"):
        check_same_config(config, run_dir)
        console = Console(config.task.epochs, None, config.task.eval_every)
        if (run_dir / "evaluation.json").exists():
            console.note(f"{run_dir}: this run is finished (evaluation.json is there), so there is nothing to do.")
            console.result(str(run_dir))
            return 0
        dataset = load_dataset(config.task)
        with console.progress("fitting teachers", unit="fits") as progress:
            validation = CrossValidation(dataset, config, progress)
        write_atomically(run_dir / "config.yaml", to_yaml(config))
        with Tracker.open(config, run_dir, 0, console) as tracker:
            _introduce(validation, tracker, command)
            num_epochs, examples_seen = _train(validation, tracker)
            validation.finish()
            about: dict[str, Any] = {"step": num_epochs, "num_classes": dataset.num_classes}
            about["corpus"] = dataset.fingerprint
            of_train, of_val = validation.measure("train"), validation.measure()
            evaluation = _evaluate(validation, of_val, console, examples_seen, about)
            publish(run_dir, of_train, of_train.evaluation(**about), lambda: None, "-train")
            publish(run_dir, of_val, evaluation, partial(write_classifier_page, run_dir, evaluation))
            _show(tracker, run_dir, evaluation)
        console.result(str(run_dir))
    return 0


def _introduce(validation: CrossValidation, tracker: Tracker, command: str) -> None:
    """Print what is fitted to what, and the command that repeats it."""
    dataset, task, parts = validation.dataset, validation.config.task, validation.config.cross_validation
    num_examples, num_features = dataset.features.shape
    tracker.note(
        f"data: {dataset.name}, {num_examples:,} examples, {num_features:,} features, {dataset.num_classes} classes"
    )
    tracker.note(
        f"model: {task.model}, fitted {parts.folds * parts.repeats} times ({parts.repeats} x {parts.folds} folds) for "
        f"{task.epochs:,} epochs; metrics during training are of all fits together"
    )
    if (distillation := validation.config.loss.distillation).teacher is not None:
        tracker.note(
            f"teacher: that of {distillation.teacher}, fitted anew on what each model learns from; its share of the "
            f"objective is {distillation.weight:g}, at a temperature of {distillation.temperature:g}"
        )
    tracker.note(f"the command of this run: {command}")


def _train(validation: CrossValidation, tracker: Tracker) -> tuple[int, int]:
    """Train all epochs and log a line of metrics for each; return the numbers of epochs and of examples seen."""
    task, throughput, start = validation.config.task, Throughput(), time.monotonic()
    total, before = 0, 0.0
    for epoch in range(1, task.epochs + 1):
        num_examples, metrics = validation.train_epoch(epoch)
        if not num_examples:
            tracker.note(f"early stopping has ended all fits by epoch {epoch - 1:,}")
            return epoch - 1, total
        total, seconds = total + num_examples, time.monotonic() - start
        line: dict[str, Scalar] = {
            **metrics,
            "step": epoch,
            "tokens": total,
            "train/learning_rate": task.learning_rate,
            "train/seconds": seconds,
            "train/tokens_per_second": throughput.add(num_examples, seconds - before),
        }
        before = seconds
        if epoch % task.eval_every == 0 or epoch == task.epochs:
            line |= {f"val/{name}": value for name, value in validation.score().items()}
        tracker.log(line)
    return task.epochs, total


def _evaluate(
    validation: CrossValidation, measured: Measurement, console: Console, examples_seen: int, about: dict[str, Any]
) -> ClassifierEvaluation:
    """Return the content of ``evaluation.json``: the out-of-fold predictions, and what the configuration asks for."""
    dataset, config, separation = validation.dataset, validation.config, None
    if config.separation.epochs is not None:
        with console.progress("separation", unit="epochs") as progress:
            separation = study_separation(dataset, config, progress)
    sizes = validation.temperature_by_size(config.cross_validation.calibration_sizes)
    if len(sizes) < len(config.cross_validation.calibration_sizes):
        console.note("cross_validation.calibration_sizes: sizes above the smallest calibration part are left out")
    measured.calibrators = validation.compare_calibrators()
    evaluation = measured.evaluation(
        **about,
        record=ClassifierEvaluation,
        calibration=validation.pooled_calibration(),
        calibration_sizes=sizes,
        teacher=None if validation.teacher is None else flatten(validation.teacher),
        task=TaskSummary(
            name=config.task.name,
            model=config.task.model,
            data=dataset.name,
            features=list(dataset.feature_names),
            classes=list(dataset.class_names),
            class_counts=np.bincount(dataset.labels).tolist(),
            examples_seen=examples_seen,
        ),
        folds=[
            FoldSummary(
                repeat=model.fold.repeat,
                fold=model.fold.number,
                num_learning=len(model.fold.learning),
                num_calibration=len(model.fold.calibration),
                num_scored=len(model.fold.scored),
                temperature=model.calibration.value,
                reason=model.calibration.reason,
                stopped_at=model.stopped_at,
            )
            for model in validation.models
        ],
        separation=separation,
    )
    assert isinstance(evaluation, ClassifierEvaluation)
    return evaluation


def _show(tracker: Tracker, run_dir: Path, evaluation: ClassifierEvaluation) -> None:
    """Print the tables, and mirror the metrics and the page."""
    calibrators = calibrator_rows(evaluation.calibrators)
    tracker.console.result(aligned("calibrators, each fitted within the training folds:", calibrators) + "\n")
    if separation := evaluation.separation:
        about = (
            f"separation ({separation.num_learning:,} training examples; nll, accuracy and confidence on "
            f"{separation.num_scored:,} held-out ones):"
        )
        words, table = separation_words(separation), aligned(about, separation_rows(separation))
        tracker.console.result("\n".join([*words, table, ""]))
    _, metrics, values = summary(evaluation, MEANINGS)
    tracker.summary(title(evaluation), metrics, values)
    tracker.report(run_dir / "report.html", reliability_lines(evaluation))
