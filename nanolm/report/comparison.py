"""The page of a comparison: tables, a plot of each metric against what was swept, and theory beside measurement."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nanolm.comparison.cells import LANGUAGE_MODEL, Panel
from nanolm.comparison.differences import METRICS
from nanolm.comparison.run import Comparison
from nanolm.comparison.tables import (
    about_differences,
    against_baseline,
    gap_rows,
    means,
    restoring_rows,
    smoothing_rows,
)
from nanolm.comparison.theory import Gaps, gaps, smoothed_cells
from nanolm.report import figures
from nanolm.report.pages import render

FIRST_METRICS = tuple(METRICS)[:5]
"""Tables are divided after these, so that a page holds them."""
LONGEST_LABEL = 48


def write_comparison_page(path: Path, comparison: Comparison) -> None:
    """Write the page, which loads nothing from elsewhere."""
    num_runs = len(comparison.runs)
    render(
        path,
        "comparison.html",
        title=f"{comparison.folder} on {comparison.split}",
        lead=f"{num_runs} finished run{'' if num_runs == 1 else 's'}",
        panels=[_panel(panel, comparison.margin) for panel in comparison.panels],
        runs=[(str(run.path), run.seed) for run in comparison.runs],
        unfinished=[str(place) for place in comparison.unfinished],
    )


def _panel(panel: Panel, margin: float | None) -> dict[str, Any]:
    both = (FIRST_METRICS, tuple(METRICS)[len(FIRST_METRICS) :])
    found, unit = gaps(panel), "token" if panel.task == LANGUAGE_MODEL else "example"
    sizes = [entry for run in panel.baseline.runs for entry in run.figures.get("calibration_sizes") or []]
    return {
        "task": panel.task,
        "swept": panel.keys,
        "implied": panel.implied,
        "baseline": panel.baseline.label,
        "means": [means(panel, metrics) for metrics in both],
        "differences": [against_baseline(panel, metrics, margin) for metrics in both] if len(panel.cells) > 1 else [],
        "about_differences": about_differences(panel, margin=margin),
        "plots": metric_plots(panel),
        "numbered": None if _numeric_positions(panel) else [cell.label for cell in panel.cells],
        "smoothing": [smoothing_rows(rows), restoring_rows(rows)] if (rows := smoothed_cells(panel)) else [],
        "gaps": gap_rows(found) if found else None,
        "gap_plot": gap_plot(found) if found else None,
        "by_size": figures.temperature_by_size(sizes, unit) if sizes else None,
        "curves": nll_curves(panel),
    }


def metric_plots(panel: Panel) -> Markup:
    """Each metric against the key that was swept; a dot for each run, a line through the means of the cells.

    Where it was not one key of numbers, against the numbers of the cells.
    """
    present = [m for m in METRICS if any(run.value(m) is not None for cell in panel.cells for run in cell.runs)]
    numeric = _numeric_positions(panel)
    figure = Figure(figsize=(7.2, 1.9 * ((len(present) + 1) // 2) + 0.6), layout="constrained")
    axes_of = np.ravel(figure.subplots((len(present) + 1) // 2, 2, sharex=True))
    positions = numeric or [float(number) for number in range(len(panel.cells))]
    for axes, metric in zip(axes_of, present, strict=False):
        points = [
            (position, value)
            for position, cell in zip(positions, panel.cells, strict=True)
            for run in cell.runs
            if (value := run.value(metric)) is not None
        ]
        axes.plot(*zip(*points, strict=True), "o", color=figures.VAL, markersize=3.5, alpha=0.6)
        at = sorted({position for position, _ in points})
        centre = [float(np.mean([value for position, value in points if position == place])) for place in at]
        axes.plot(at, centre, "-" if numeric else "_", color=figures.TRAIN, linewidth=1.4, markersize=14)
        axes.set_title(METRICS[metric], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if not numeric:
            axes.set_xticks(positions, [str(number + 1) for number in range(len(panel.cells))])
    for axes in axes_of[len(present) :]:
        axes.set_visible(False)
        axes_of[len(present) - 2].tick_params(labelbottom=True)  # the last of its column
    for axes in axes_of[-2:]:
        axes.set_xlabel(_plain(panel.keys[0]) if numeric else "cell")
    return figures.svg(figure)


def _plain(label: str) -> str:
    """A label as matplotlib takes it for text and not for a formula, and no longer than a figure has room for."""
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL // 2]}…{label[-LONGEST_LABEL // 2 :]}"
    return f" {label}".replace("$", r"\$")  # one that begins with _ would be no label


def _numeric_positions(panel: Panel) -> list[float] | None:
    """Where the cells stand on the axis of the one key that was swept; None where it holds no numbers."""
    if len(panel.keys) != 1:
        return None
    values = [cell.values[0] for cell in panel.cells]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers if len(numbers) == len(values) else None


def gap_plot(found: list[Gaps]) -> Markup:
    """The calibration gap of every run against its generalization gap, with the line that bounds it."""
    figure, axes = figures.new_figure()
    generalization, calibration = ([getattr(gap, name) for gap in found] for name in ("generalization", "calibration"))
    ends = [min(0.0, *generalization), max(0.0, *generalization)]
    axes.plot(ends, ends, "--", color="#9ca3af", linewidth=1, label="calibration gap = generalization gap")
    axes.plot(generalization, calibration, "o", color=figures.VAL, markersize=4, alpha=0.7, label="runs")
    axes.set(xlabel="error rate, new text - training text", ylabel="ECE, new text - training text")
    axes.legend(frameon=False)
    return figures.svg(figure)


def nll_curves(panel: Panel) -> Markup | None:
    """NLL against T on the calibration split of the first run of each cell, less its smallest value."""
    figure, axes = figures.new_figure()
    drawn, colors = 0, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(panel.cells)))
    for cell, color in zip(panel.cells, colors, strict=True):
        curve = (cell.runs[0].figures.get("calibration") or {}).get("curve")
        if curve:
            nll = np.array(curve["nll"])
            axes.plot(curve["temperature"], nll - nll.min(), color=color, linewidth=1.4, label=_plain(cell.label))
            drawn += 1
    if not drawn:
        return None
    axes.set(xlabel="temperature", ylabel="NLL - its minimum (nats)", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8)
    return figures.svg(figure)
