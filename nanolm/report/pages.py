"""The pages: what a run or an evaluation measured, on one sheet."""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from nanolm.evaluation import MEANINGS
from nanolm.files import write_atomically
from nanolm.report import figures
from nanolm.tracking import read_metrics


def write_run_report(run_dir: Path, evaluation: dict[str, Any]) -> None:
    """Write ``report.html`` of a training run from its directory and the content of ``evaluation.json``."""
    metrics = read_metrics(run_dir / "metrics.jsonl")
    seconds = metrics[-1]["train/seconds"]
    _write(
        run_dir / "report.html",
        title=f"{run_dir.parent.name}/{run_dir.name}",
        lead=f"{evaluation['step']:,} steps, {metrics[-1]['tokens']:,} tokens, {seconds:,.0f} seconds of training",
        evaluation=evaluation,
        curve=figures.training_curve(metrics),
        documents=_document_figure(run_dir / "documents-val.npz", evaluation),
        samples=(run_dir / "samples.txt").read_text(encoding="utf-8"),
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )


def write_evaluation_report(folder: Path, checkpoint: Path, evaluation: dict[str, Any]) -> None:
    """Write ``report-<split>.html`` beside the ``documents-<split>.npz`` of an evaluation."""
    split = evaluation["split"]
    _write(
        folder / f"report-{split}.html",
        title=f"{checkpoint.name} on {split}",
        lead=str(checkpoint),
        evaluation=evaluation,
        documents=_document_figure(folder / f"documents-{split}.npz", evaluation),
    )


def _document_figure(path: Path, evaluation: dict[str, Any]) -> str:
    with np.load(path) as documents:
        has_text = documents["num_bytes"] > 0
        num_bytes = documents["num_bytes"][has_text]
        bits_per_byte = documents["nll_sum"][has_text] / np.log(2) / num_bytes
    return figures.document_scatter(bits_per_byte, num_bytes, evaluation["bits_per_byte"]["value"])


def _write(path: Path, **content: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nanolm.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html").render(
        {"curve": None, "samples": None, "config": None, "rows": MEANINGS} | content
    )
    write_atomically(path, page + "\n")
