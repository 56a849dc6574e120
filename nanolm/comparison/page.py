"""The page of a comparison: tables, a plot of each metric against what was varied, theory and measurement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup

from nanolm.comparison import tables
from nanolm.comparison.cells import LANGUAGE_MODEL, Panel
from nanolm.comparison.differences import COMPARED, Differences
from nanolm.comparison.runs import Run, values_of
from nanolm.comparison.theory import Gap, gaps, smoothed_cells
from nanolm.config.schema import CompareConfig
from nanolm.metrics import METRICS
from nanolm.report import plots
from nanolm.report.pages import render

TABLES = (COMPARED[:5], COMPARED[5:])
"""The metrics of each table, as many as fit on the page."""
LONGEST_LABEL = 48


def write_comparison_page(
    path: Path,
    config: CompareConfig,
    compared: Sequence[tuple[Panel, Differences]],
    runs: Sequence[Run],
    unfinished: Sequence[Path],
) -> None:
    """Write the self-contained page of a comparison."""
    render(
        path,
        "comparison.html",
        "nanolm.comparison",
        title=f"{Path(config.runs)} on {config.split}",
        lead=f"{len(runs)} finished run{'' if len(runs) == 1 else 's'}",
        panels=[_panel(panel, found) for panel, found in compared],
        runs=[(str(run.path), run.seed) for run in runs],
        unfinished=[str(place) for place in unfinished],
    )


def _panel(panel: Panel, found: Differences) -> dict[str, Any]:
    """Return the template's values for one panel; sections whose value is empty are left out of the page."""
    smoothed, panel_gaps = smoothed_cells(panel), gaps(panel)
    sizes = [size for run in panel.baseline.runs for size in run.evaluation.calibration_sizes]
    return {
        "panel": panel,
        "means": [tables.mean_rows(panel, metrics) for metrics in TABLES],
        "differences": [rows for metrics in TABLES if (rows := tables.difference_rows(panel, found, metrics))],
        "about_differences": tables.about_differences(panel, found),
        "plots": metric_plots(panel),
        "is_numbered": _positions(panel) is None,
        "smoothing": [tables.smoothing_rows(smoothed), tables.restoring_rows(smoothed)] if smoothed else [],
        "gaps": tables.gap_rows(panel_gaps) if panel_gaps else [],
        "gap_plot": gap_plot(panel_gaps),
        "by_size": plots.temperature_by_size(sizes, "token" if panel.task == LANGUAGE_MODEL else "example"),
        "curves": nll_curves(panel),
    }


def metric_plots(panel: Panel) -> Markup:
    """Plot each metric against the key that was varied, or against the cell's number; see ``_positions``."""
    present = [metric for metric in COMPARED if any(values_of(cell.runs, metric) for cell in panel.cells)]
    varied, num_rows = _positions(panel), (len(present) + 1) // 2
    positions = varied or [float(number) for number in range(1, len(panel.cells) + 1)]
    figure, axes_of = plots.new_plots(num_rows, 2, height=1.9 * num_rows + 0.6)
    for axes, metric in zip(axes_of, present, strict=False):
        points = sorted((at, values_of(cell.runs, metric)) for at, cell in zip(positions, panel.cells, strict=True))
        points = [(at, values) for at, values in points if values]
        for at, values in points:
            axes.plot([at] * len(values), values, "o", color=plots.VAL, markersize=3.5, alpha=0.6)
        means = [np.mean(values) for _, values in points]
        style = "-" if varied else "_"
        axes.plot([at for at, _ in points], means, style, color=plots.TRAIN, linewidth=1.4, markersize=14)
        axes.set_title(METRICS[metric].label, fontsize=10)
        if not varied:
            axes.set_xticks(positions)
    for axes in axes_of[len(present) :]:
        axes.set_visible(False)
    figure.supxlabel(_plain(panel.keys[0]) if varied else "cell", fontsize=10)
    return plots.svg(figure)


def _positions(panel: Panel) -> list[float] | None:
    """Return each cell's value of the key that was varied; None if that is not one key with numbers as values."""
    values = [cell.settings.get(panel.keys[0]) for cell in panel.cells] if len(panel.keys) == 1 else [None]
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else None


def _plain(label: str) -> str:
    """Return a label that matplotlib takes as text rather than a formula, no longer than a plot has room for."""
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL // 2]}…{label[-LONGEST_LABEL // 2 :]}"
    return f" {label}".replace("$", r"\$")  # matplotlib ignores a label that begins with _


def gap_plot(found: Sequence[Gap]) -> Markup | None:
    """Plot the calibration gap of each run against its generalization gap, with the published bound."""
    if not found:
        return None
    figure, axes = plots.new_plot()
    generalization, calibration = [gap.generalization for gap in found], [gap.calibration for gap in found]
    ends = [min(0.0, *generalization), max(0.0, *generalization)]
    axes.plot(ends, ends, "--", color=plots.GRAY, linewidth=1, label="calibration gap = generalization gap")
    axes.plot(generalization, calibration, "o", color=plots.VAL, markersize=4, alpha=0.7, label="runs")
    axes.set(xlabel="error rate, new text - training text", ylabel="ECE, new text - training text")
    axes.legend(frameon=False)
    return plots.svg(figure)


def nll_curves(panel: Panel) -> Markup | None:
    """Plot NLL minus its minimum against T on the calibration split, for the first run of each cell."""
    figure, axes = plots.new_plot()
    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(panel.cells)))
    for cell, color in zip(panel.cells, colors, strict=True):
        calibration = cell.runs[0].evaluation.calibration
        if calibration is not None and calibration.curve is not None:
            nll, temperature = np.array(calibration.curve.nll), calibration.curve.temperature
            axes.plot(temperature, nll - nll.min(), color=color, linewidth=1.4, label=_plain(cell.label))
    if not axes.lines:
        return None
    axes.set(xlabel="temperature", ylabel="NLL - its minimum (nats)")
    plots.log_temperature(axes)
    axes.legend(frameon=False, fontsize=8)
    return plots.svg(figure)
