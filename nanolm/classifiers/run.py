"""One baseline run from configuration to ``evaluation.json``. It takes a minute, so one that was killed starts over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.classifiers.agreement import three_ways
from nanolm.classifiers.calibration_sizes import temperature_by_size
from nanolm.classifiers.cross_validation import CrossValidation
from nanolm.classifiers.datasets import Dataset, load_dataset
from nanolm.classifiers.separation import study_separation
from nanolm.classifiers.tables import MEANINGS, agreement_table, calibrator_table, separation_table, title
from nanolm.config import differences, flatten, from_yaml, to_yaml
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.errors import ConfigError
from nanolm.evaluation import FittedTemperature, Measurement, calibration_json, finite, summary_values, table_rows
from nanolm.files import lock, write_atomically
from nanolm.tracking import Console, Stopwatch, Throughput, Tracker
from nanolm.tracking.metrics_file import Scalar

WriteReport = Callable[[Path, dict[str, Any]], bytes]

EVALUATION = "evaluation.json"
DURING_TRAINING = (
    "nll",
    "perplexity",
    "accuracy",
    "confidence",
    "ece",
    "smooth_ece",
    "brier",
    "entropy",
    "entropy_gap",
)


def run_baseline(config: BaselineConfig, run_dir: Path, command: str, write_report: WriteReport) -> int:
    """Cross-validate, measure and publish; a finished run of the same configuration is left as it is.

    Args:
        config: the run's configuration.
        run_dir: the run directory, which exists.
        command: what the user types to run it again; printed at the start.
        write_report: makes ``report.html`` from the run directory and the content of ``evaluation.json``, which
            is published after it as the last of all files; returns the reliability diagram as PNG.

    Returns:
        The exit code, 0.

    Raises:
        NanolmError: the input is wrong, or the loss became NaN.
    """
    with lock(run_dir / ".lock", ConfigError, purpose="running a baseline"):
        _check_same_run(config, run_dir)
        console = Console(config.task.epochs, None, config.task.eval_every)
        if (run_dir / EVALUATION).exists():
            console.note(f"{run_dir}: this run is finished ({EVALUATION} is there), so there is nothing to do.")
            console.result(str(run_dir))
            return 0
        dataset = load_dataset(config.task)
        with console.progress("fitting teachers", unit="fits") as progress:
            validation = CrossValidation(dataset, config, progress)
        write_atomically(run_dir / "config.yaml", to_yaml(config))
        with Tracker.open(config, run_dir, 0, console) as tracker:
            _introduce(tracker, dataset, config, command)
            trained = _train(validation, config, tracker)
            validation.finish()
            measured = validation.measure()
            content = _content(validation, measured, console, trained)
            measured.write_documents(run_dir / "documents-val.npz")
            _write_train(validation.measure("train"), run_dir, content)
            diagram = write_report(run_dir, content)
            write_atomically(run_dir / EVALUATION, json.dumps(content, indent=2) + "\n")
            _show(tracker, run_dir, content, diagram)
        console.result(str(run_dir))
    return 0


def _introduce(tracker: Tracker, dataset: Dataset, config: BaselineConfig, command: str) -> None:
    classes, parts = len(dataset.class_names), config.cross_validation
    tracker.note(
        f"data: {dataset.name}, {len(dataset):,} examples, {len(dataset.feature_names):,} features, {classes} classes"
    )
    tracker.note(
        f"model: {config.task.model}, fitted {parts.folds * parts.repeats} times ({parts.repeats} x {parts.folds} "
        f"folds) for {config.task.epochs:,} epochs; figures during training are of all fits together"
    )
    distillation = config.loss.distillation
    if distillation.teacher is not None:
        tracker.note(
            f"teacher: that of {distillation.teacher}, fitted anew on what each model learns from; its share of the "
            f"objective is {distillation.weight:g}, at a temperature of {distillation.temperature:g}"
        )
    tracker.note(f"the command of this run: {command}")


def _train(validation: CrossValidation, config: BaselineConfig, tracker: Tracker) -> tuple[int, int]:
    """All epochs, one line of ``metrics.jsonl`` each; the number of epochs and of examples that were learnt from."""
    task, stopwatch, throughput = config.task, Stopwatch(), Throughput()
    tokens, done, before = 0, 0, 0.0
    for epoch in range(1, task.epochs + 1):
        line: dict[str, Scalar] = dict(validation.train_epoch(epoch))
        if not line:
            tracker.note(f"early stopping has ended all fits by epoch {done:,}")
            break
        examples = int(line.pop("examples") or 0)
        done, tokens = epoch, tokens + examples
        seconds = stopwatch.seconds
        line |= {
            "step": epoch,
            "tokens": tokens,
            "train/learning_rate": task.learning_rate,
            "train/seconds": seconds,
            "train/tokens_per_second": throughput.add(examples, seconds - before),
        }
        before = seconds
        if epoch % task.eval_every == 0 or epoch == task.epochs:
            figures = validation.score().metrics()
            line |= {f"val/{name}": figures[name] for name in DURING_TRAINING}
        tracker.log(line)
    return done, tokens


def _content(
    validation: CrossValidation, measured: Measurement, console: Console, trained: tuple[int, int]
) -> dict[str, Any]:
    """The content of ``evaluation.json``: the keys of a language model's, and what only a classifier has."""
    dataset, config = validation.dataset, validation.config
    pooled = validation.pooled_temperature()
    interval = pooled.interval if isinstance(pooled, FittedTemperature) else None
    separation = None
    if config.separation.epochs is not None:
        with console.progress("separation", unit="epochs") as progress:
            separation = study_separation(dataset, config, progress)
    sizes = config.cross_validation.calibration_sizes
    by_size = temperature_by_size(validation, sizes)
    if len(by_size) < len(sizes):
        console.note("cross_validation.calibration_sizes: sizes above the smallest calibration part are left out")
    return {
        "split": measured.split,
        "step": trained[0],
        "num_tokens": measured.num_tokens,
        "num_documents": len(dataset),
        "num_classes": dataset.num_classes,
        "corpus": dataset.fingerprint,
        "intervals": measured.about_intervals,
        **measured.figures_json(interval),
        "reliability": measured.reliability_json(),
        "slices": {},
        "calibration": calibration_json(pooled),
        "task": {
            "name": config.task.name,
            "model": config.task.model,
            "data": dataset.name,
            "features": list(dataset.feature_names),
            "classes": list(dataset.class_names),
            "class_counts": [int((dataset.labels == label).sum()) for label in range(dataset.num_classes)],
            "examples_seen": trained[1],
        },
        "teacher": None if validation.teacher is None else flatten(validation.teacher),
        "calibration_sizes": by_size,
        "calibrators": [
            {name: finite(value) if isinstance(value, float) else value for name, value in row.items()}
            for row in validation.compare_calibrators()
        ],
        "folds": [
            {
                "repeat": model.fold.repeat,
                "fold": model.fold.number,
                "num_learning": len(model.fold.learning),
                "num_calibration": len(model.fold.calibration),
                "num_scored": len(model.fold.scored),
                "temperature": found if isinstance(found, float) else None,
                "reason": None if isinstance(found, float) else found,
                "stopped_at": model.learner.stopped_at,
            }
            for model, found in zip(validation.models, validation.temperatures, strict=True)
        ],
        "agreement": three_ways(dataset, config.separation.l2) if config.task.name == "binary" else None,
        "separation": separation,
    }


def _write_train(measured: Measurement, run_dir: Path, content: dict[str, Any]) -> None:
    """Leave the figures of what was learnt from, beside which those of other examples show their gaps."""
    measured.write_documents(run_dir / "documents-train.npz")
    figures = {
        "split": "train",
        "step": content["step"],
        "num_tokens": measured.num_tokens,
        "num_documents": content["num_documents"],
        "num_classes": content["num_classes"],
        "corpus": content["corpus"],
        "intervals": measured.about_intervals,
        **measured.figures_json(),
        "reliability": measured.reliability_json(),
    }
    write_atomically(run_dir / "evaluation-train.json", json.dumps(figures, indent=2) + "\n")


def _show(tracker: Tracker, run_dir: Path, content: dict[str, Any], diagram: bytes) -> None:
    """Print the tables, and mirror the figures and the report."""
    tracker.console.result(calibrator_table(content) + "\n")
    if content["agreement"]:
        tracker.console.result(agreement_table(content) + "\n")
    if content["separation"]:
        tracker.console.result(separation_table(content) + "\n")
    tracker.summary(title(content), table_rows(content, MEANINGS), summary_values(content))
    lines = {f"T = {name}": line for name, line in content["reliability"].items()}
    tracker.report(run_dir / "report.html", diagram, lines)


def _check_same_run(config: BaselineConfig, run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    before = from_yaml(path.read_text(encoding="utf-8"), BaselineConfig)
    if differing := differences(before, config, ("name", "wandb.")):
        raise ConfigError(
            f"{run_dir}: this directory holds a run with another configuration:\n"
            + "\n".join(differing)
            + "\nGive the same values, or another hydra.run.dir for a new run."
        )
