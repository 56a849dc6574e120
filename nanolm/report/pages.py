"""The pages: what a run or an evaluation measured, on one sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nanolm.evaluation import MEANINGS, interval_text
from nanolm.files import write_atomically
from nanolm.report import figures
from nanolm.tracking import read_metrics


def write_run_report(run_dir: Path, evaluation: dict[str, Any]) -> bytes:
    """Write ``report.html`` of a training run from its directory and the content of ``evaluation.json``.

    Returns the reliability diagram as PNG, for mirrors that take no page.
    """
    metrics = read_metrics(run_dir / "metrics.jsonl")
    seconds = metrics[-1]["train/seconds"]
    write_page(
        run_dir / "report.html",
        title=f"{run_dir.parent.name}/{run_dir.name}",
        lead=f"{evaluation['step']:,} steps, {metrics[-1]['tokens']:,} tokens, {seconds:,.0f} seconds of training",
        evaluation=evaluation,
        curve=figures.training_curve(metrics),
        documents=_document_figure(run_dir / "documents-val.npz", evaluation),
        samples=(run_dir / "samples.txt").read_text(encoding="utf-8"),
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )
    return figures.png(figures.reliability_diagram(evaluation["reliability"]))


def write_evaluation_report(folder: Path, checkpoint: Path, evaluation: dict[str, Any]) -> None:
    """Write ``report-<split>.html`` beside the ``documents-<split>.npz`` of an evaluation."""
    split = evaluation["split"]
    write_page(
        folder / f"report-{split}.html",
        title=f"{checkpoint.name} on {split}",
        lead=str(checkpoint),
        evaluation=evaluation,
        documents=_document_figure(folder / f"documents-{split}.npz", evaluation),
    )


def _calibration_figures(evaluation: dict[str, Any], unit: str) -> dict[str, str | None]:
    """The figures of an evaluation that has what they show."""
    calibration, slices = evaluation.get("calibration") or {}, evaluation["slices"]
    temperature_figure = None
    if calibration.get("temperature"):
        fitted = calibration["temperature"]["value"]
        points = {1.0: evaluation["nll"]["value"], fitted: evaluation["nll_at_temperature"]["value"]}
        temperature_figure = figures.temperature_curve(calibration["curve"], fitted, points, unit)
    return {
        "reliability": figures.svg(figures.reliability_diagram(evaluation["reliability"], unit)),
        "temperature": temperature_figure,
        "no_temperature": calibration.get("reason"),
        "by_frequency": slices.get("frequency")
        and figures.slice_figure(
            slices["frequency"], "frequency in the training text of the token predicted from, deciles"
        ),
        "by_position": slices.get("position")
        and figures.slice_figure(slices["position"], "tokens of context before the one predicted from"),
    }


def _document_figure(path: Path, evaluation: dict[str, Any]) -> str:
    with np.load(path) as documents:
        has_text = documents["num_bytes"] > 0
        num_bytes = documents["num_bytes"][has_text]
        bits_per_byte = documents["nll_sum"][has_text] / np.log(2) / num_bytes
    return figures.document_scatter(bits_per_byte, num_bytes, evaluation["bits_per_byte"]["value"])


def write_page(
    path: Path,
    *,
    template: str = "report.html",
    unit: str = "token",
    meanings: Mapping[str, str] = MEANINGS,
    **content: Any,
) -> None:
    """Write a page from its template; everything in it that is not markup of ours is escaped.

    Args:
        unit: what a prediction is of, for the labels of figures.
        meanings: the figures of its table.
        content: what the template names, ``evaluation`` (the content of ``evaluation.json``) among it.
    """
    render(
        path,
        template,
        **{"curve": None, "samples": None, "config": None}
        | _calibration_figures(content["evaluation"], unit)
        | {"rows": [row for row in meanings.items() if row[0] in content["evaluation"]], "interval_text": interval_text}
        | content,
    )


def render(path: Path, template: str, **content: Any) -> None:
    """Write any page: ``content`` is what its template names; what is no ``Markup`` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nanolm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    write_atomically(path, environment.get_template(template).render(content) + "\n")
