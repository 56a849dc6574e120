"""The page of a baseline run: the language model's, with calibrators compared and the study of separation."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nanolm.classifiers.tables import MEANINGS, agreement_rows, separation_rows, separation_words
from nanolm.report import figures
from nanolm.report.pages import write_page
from nanolm.tracking import read_metrics

PANELS = (
    ("weight_norm", "norm of the weights"),
    ("margin", "median margin (nats), learnt from"),
    ("confidence", "mean confidence, held out"),
    ("accuracy", "accuracy, held out"),
    ("train_nll", "NLL (nats), learnt from"),
    ("nll", "NLL (nats), held out"),
)
COLORS = (figures.VAL, "#6b7280", "#15803d", "#1d4ed8")
STYLES = ("-", "--", "-.", ":")


def write_baseline_report(run_dir: Path, evaluation: dict[str, Any]) -> bytes:
    """Write ``report.html`` of a baseline run from its directory and the content of ``evaluation.json``.

    Returns the reliability diagram as PNG, for mirrors that take no page.
    """
    task = evaluation["task"]
    write_page(
        run_dir / "report.html",
        template="baseline.html",
        unit="prediction",
        meanings=MEANINGS,
        title=f"{run_dir.parent.name}/{run_dir.name}",
        lead=f"{task['data']}: {task['model']} model, {evaluation['step']:,} epochs, {task['examples_seen']:,} "
        "examples seen by all folds together",
        evaluation=evaluation,
        curve=figures.training_curve(read_metrics(run_dir / "metrics.jsonl"), unit="example"),
        separation=separation_figure(evaluation["separation"]) if evaluation["separation"] else None,
        separation_rows=separation_rows(evaluation) if evaluation["separation"] else None,
        separation_words=separation_words(evaluation) if evaluation["separation"] else None,
        agreement_rows=agreement_rows(evaluation) if evaluation["agreement"] else None,
        refused=[fold["reason"] for fold in evaluation["folds"] if fold["temperature"] is None],
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )
    return figures.png(figures.reliability_diagram(evaluation["reliability"], "prediction"))


def separation_figure(separation: dict[str, Any]) -> Markup:
    """What grows with epochs and what does not, for each fit.

    A dot is where early stopping stopped, a vertical line where maximum likelihood separated its training data.
    """
    figure = Figure(figsize=(7.2, 7.6), layout="constrained")
    panels = np.ravel(figure.subplots(3, 2, sharex=True))
    for axes, (name, label) in zip(panels, PANELS, strict=True):
        for fit, color, style in zip(separation["fits"], COLORS, STYLES, strict=True):
            axes.plot(separation["epochs"], fit["curves"][name], style, color=color, label=fit["name"])
            if fit["epoch"] != separation["epochs"][-1]:
                axes.plot([fit["epoch"]], [fit["final"][name]], "o", color=color, markersize=4)
        if separation["separated_at"] is not None:
            axes.axvline(separation["separated_at"], color="#9ca3af", linewidth=1, label="separated")
        axes.set(xscale="log", title=label)
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[4].set_yscale("log")
    panels[5].set_yscale("log")
    for axes in panels[-2:]:
        axes.set_xlabel("epochs")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figures.svg(figure)
