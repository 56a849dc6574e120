"""Present a classifier's evaluation on a terminal and on its page."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nanolm.classifiers.evaluation import ClassifierEvaluation, Separation, SeparationPoint
from nanolm.metrics import METRICS
from nanolm.report import plots
from nanolm.report.pages import write_evaluation_page
from nanolm.tracking import read_metrics

MEANINGS = {name: metric.meaning for name, metric in METRICS.items() if name != "bits_per_byte"} | {
    "nll": "nats per prediction, never smoothed",
    "accuracy": "share of predictions where the most likely class is right",
    "confidence": "mean probability of the most likely class",
    "brier": "Σ (probability - outcome)² over the classes",
    "entropy": "nats per prediction that the model expects to lose",
    "temperature": "T of the lowest NLL on all inner splits together",
    "nll_at_temperature": "NLL with each fold's logits divided by the T of its inner split",
}
"""The metrics of the table, in its order."""

PANELS = (
    ("weight_norm", "norm of the weights"),
    ("margin", "median margin (nats), learned from"),
    ("confidence", "mean confidence, held out"),
    ("accuracy", "accuracy, held out"),
    ("train_nll", "NLL (nats), learned from"),
    ("nll", "NLL (nats), held out"),
)
COLORS = (plots.VAL, plots.GRAY, "#15803d", "#1d4ed8")
STYLES = ("-", "--", "-.", ":")


def title(evaluation: ClassifierEvaluation) -> str:
    """Return the title of the table of metrics."""
    task = evaluation.task
    return (
        f"{task.data}, {task.model}, after {evaluation.step:,} epochs: {evaluation.num_tokens:,} out-of-fold "
        f"predictions of {evaluation.num_documents:,} examples; {evaluation.intervals}"
    )


def write_classifier_page(run_dir: Path, evaluation: ClassifierEvaluation) -> None:
    """Write ``report.html`` of a baseline run whose other files exist."""
    task, separation = evaluation.task, evaluation.separation
    write_evaluation_page(
        run_dir / "report.html",
        evaluation,
        template="classifier.html",
        unit="prediction",
        meanings=MEANINGS,
        title=f"{run_dir.parent.name}/{run_dir.name}",
        lead=f"{task.data}: {task.model} model, {evaluation.step:,} epochs, {task.examples_seen:,} examples seen by "
        "all folds together",
        curve=plots.training_curve(read_metrics(run_dir / "metrics.jsonl"), unit="example"),
        separation_words=separation_words(separation) if separation else None,
        separation_rows=separation_rows(separation) if separation else None,
        separation_plot=separation_plot(separation) if separation else None,
        config=(run_dir / "config.yaml").read_text(encoding="utf-8"),
    )


def separation_rows(separation: Separation) -> list[list[str]]:
    """Return the header and one row of text for each fit of the separation study."""
    names = list(SeparationPoint.model_fields)
    rows = [["fit", "epoch", *(name.replace("_", " ") for name in names), "lowest nll", "at epoch"]]
    for fit in separation.fits:
        values = [f"{value:#.4g}" for value in (*(getattr(fit.final, name) for name in names), fit.lowest.nll)]
        rows.append([fit.name, f"{fit.epoch:,}", *values, f"{fit.lowest.epoch:,}"])
    return rows


def separation_words(separation: Separation) -> list[str]:
    """Return in sentences what the separation study measured, and whether it separated the classes."""
    free, best = separation.fits[0], min(separation.fits, key=lambda fit: fit.final.nll)
    final, lowest, end = free.final, free.lowest, f"epoch {free.epoch:,}"
    if separation.separated_at is None:
        first = (
            f"Maximum likelihood did not separate its training data: at {end} {final.train_accuracy:.2%} of "
            f"{separation.num_learning:,} examples are classified correctly, and the norm of its gradient is "
            f"{separation.gradient_norm:.1e}. This run is no evidence of growth without bound."
        )
    else:
        place = int(np.searchsorted(separation.epochs, separation.separated_at))
        norm, nll = free.curves["weight_norm"][place], free.curves["train_nll"][place]
        first = (
            f"Maximum likelihood classified all {separation.num_learning:,} training examples correctly for the first "
            f"time at epoch {separation.separated_at:,}. From there to {end} the norm of its weights went from "
            f"{norm:.3g} to {final.weight_norm:.3g} and its training NLL from {nll:.3g} to {final.train_nll:.3g}; "
            f"{final.train_accuracy:.2%} of them are classified correctly at the end."
        )
    num_wrong = round((1 - final.accuracy) * separation.num_scored)
    return [
        first,
        f"Its NLL on held-out examples was lowest, {lowest.nll:.4g}, at epoch {lowest.epoch:,}; at the end it is "
        f"{final.nll:.4g}, and {num_wrong:,} of {separation.num_scored:,} are misclassified.",
        f"Of the four fits as they end, {best.name} has the lowest NLL on held-out examples, {best.final.nll:.4g}. "
        "This is one split and one seed, without intervals.",
    ]


def separation_plot(separation: Separation) -> Markup:
    """Plot each metric of the separation study against epochs, for each fit.

    A dot marks where early stopping stopped, a vertical line where maximum likelihood separated its training data.
    """
    figure = Figure(figsize=(plots.WIDTH, 7.6), layout="constrained")
    panels = np.ravel(figure.subplots(3, 2, sharex=True))
    for axes, (name, label) in zip(panels, PANELS, strict=True):
        for fit, color, style in zip(separation.fits, COLORS, STYLES, strict=True):
            axes.plot(separation.epochs, fit.curves[name], style, color=color, label=fit.name)
            if fit.epoch != separation.epochs[-1]:
                axes.plot([fit.epoch], [getattr(fit.final, name)], "o", color=color, markersize=4)
        if separation.separated_at is not None:
            axes.axvline(separation.separated_at, color="#9ca3af", linewidth=1, label="separated")
        axes.set(xscale="log", yscale="log" if name.endswith("nll") else "linear", title=label)
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for axes in panels[-2:]:
        axes.set_xlabel("epochs")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return plots.svg(figure)
