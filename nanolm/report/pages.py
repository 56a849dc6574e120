"""The pages: what an evaluation measured, on one sheet, and what a terminal shows of it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nanolm.files import write_atomically
from nanolm.metrics import METRICS, CalibratorRow, Evaluation, Measurement
from nanolm.report import plots
from nanolm.tracking import read_metrics

MEANINGS = {name: metric.meaning for name, metric in METRICS.items()}
CALIBRATOR_METRICS = ("nll", "ece", "smooth_ece", "brier", "accuracy", "confidence", "entropy_gap")


def publish(
    folder: Path, measured: Measurement, evaluation: Evaluation, write_page: Callable[[], None], suffix: str = ""
) -> None:
    """Write an evaluation to a folder: the sums per document, then the page from them, and last of all the JSON.

    Args:
        suffix: of ``evaluation`` in the file's name; empty for the evaluation that marks a run as finished.
    """
    measured.write_units(folder / f"documents-{evaluation.split}.npz")
    write_page()
    write_atomically(folder / f"evaluation{suffix}.json", evaluation.model_dump_json(indent=2) + "\n")


def summary(
    evaluation: Evaluation, meanings: Mapping[str, str] = MEANINGS
) -> tuple[str, list[tuple[str, str, str]], dict[str, float | None]]:
    """Return the title and the rows of a table of metrics, see ``metric_rows``, and ``<split>/<name>`` to value."""
    title = (
        f"{evaluation.split} after {evaluation.step:,} steps: {evaluation.num_tokens:,} tokens, each scored once; "
        f"{evaluation.intervals}"
    )
    values = {f"{evaluation.split}/{name}": evaluation.value(name) for name in evaluation.metrics}
    return title, metric_rows(evaluation, meanings), values


def reliability_lines(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the bins of each line of the reliability diagram by its name, for dashboards."""
    return {f"T = {name}": line.model_dump() for name, line in evaluation.reliability.items()}


def metric_rows(evaluation: Evaluation, meanings: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, value with its interval, meaning) of those metrics that an evaluation has."""
    found = evaluation.metrics
    return [(name, str(found[name]), meaning) for name, meaning in meanings.items() if name in found]


def calibrator_rows(rows: Sequence[CalibratorRow]) -> list[list[str]]:
    """Return the header and a row of text for each calibrator."""
    table = [["calibrator", *(name.replace("_", " ") for name in CALIBRATOR_METRICS), "note"]]
    for row in rows:
        values = [getattr(row, name) for name in CALIBRATOR_METRICS]
        table.append([row.calibrator, *("-" if np.isnan(value) else f"{value:#.4g}" for value in values), row.note])
    return table


def write_run_page(run_dir: Path, evaluation: Evaluation) -> None:
    """Write ``report.html`` of a training run from the other files in its directory."""
    metrics = read_metrics(run_dir / "metrics.jsonl")
    seconds = metrics[-1]["train/seconds"]
    write_evaluation_page(
        run_dir / "report.html",
        evaluation,
        title=f"{run_dir.parent.name}/{run_dir.name}",
        lead=f"{evaluation.step:,} steps, {metrics[-1]['tokens']:,} tokens, {seconds:,.0f} seconds of training",
        curve=plots.training_curve(metrics),
        documents=_document_plot(run_dir, evaluation),
        samples=(run_dir / "samples.txt").read_text(encoding="utf-8"),
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )


def write_split_page(folder: Path, checkpoint: Path, evaluation: Evaluation) -> None:
    """Write ``report-<split>.html`` of a checkpoint to the folder that holds its sums per document."""
    write_evaluation_page(
        folder / f"report-{evaluation.split}.html",
        evaluation,
        title=f"{checkpoint.name} on {evaluation.split}",
        lead=str(checkpoint),
        documents=_document_plot(folder, evaluation),
    )


def _document_plot(folder: Path, evaluation: Evaluation) -> str:
    with np.load(folder / f"documents-{evaluation.split}.npz") as documents:
        has_text = documents["num_bytes"] > 0
        num_bytes = documents["num_bytes"][has_text]
        bits_per_byte = documents["nll_sum"][has_text] / np.log(2) / num_bytes
    return plots.document_scatter(bits_per_byte, num_bytes, evaluation.value("bits_per_byte"))


def write_evaluation_page(
    path: Path,
    evaluation: Evaluation,
    *,
    template: str = "evaluation.html",
    unit: str = "token",
    meanings: Mapping[str, str] = MEANINGS,
    **content: Any,
) -> None:
    """Write the page of an evaluation.

    Args:
        unit: name of one prediction in the labels of plots.
        meanings: the metrics of its table.
        content: what else the template names.
    """
    rows = [(name.replace("_", " "), value, meaning) for name, value, meaning in metric_rows(evaluation, meanings)]
    frequency = "frequency in the training text of the token predicted from, deciles"
    position = "tokens of context before the one predicted from"
    render(
        path,
        template,
        evaluation=evaluation,
        metrics=[("metric", "value", "meaning"), *rows],
        reliability=plots.svg(plots.reliability_diagram(evaluation.reliability, unit)),
        temperature=plots.temperature_curve(evaluation, unit),
        calibrators=calibrator_rows(evaluation.calibrators),
        by_size=plots.temperature_by_size(evaluation.calibration_sizes, unit),
        by_frequency=plots.slice_plot(evaluation.slices.get("frequency", []), frequency),
        by_position=plots.slice_plot(evaluation.slices.get("position", []), position),
        **{"curve": None, "samples": None, "config": None} | content,
    )


def render(path: Path, template: str, package: str = "nanolm.report", **content: Any) -> None:
    """Write a page from a template of a package, which may extend and import those of ``nanolm.report``.

    Args:
        content: the values of the template's names; all text in them that is not ``Markup`` is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (package, "nanolm.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    write_atomically(path, environment.get_template(template).render(content) + "\n")
