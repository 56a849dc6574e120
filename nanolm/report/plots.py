"""Plots of the pages."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanolm.metrics import CalibrationSize, Evaluation, Reliability, Slice

TRAIN, VAL, GRAY = "#8fa3bf", "#c2410c", "#6b7280"
WIDTH = 7.2
"""inches, the width of a page"""


def training_curve(metrics: Sequence[Mapping[str, Any]], unit: str = "token") -> Markup:
    """Plot the training NLL of every step, its running mean, and val NLL against tokens (or another unit) seen."""
    figure, axes = new_plot()
    tokens = np.array([line["tokens"] for line in metrics], dtype=float)
    nll = np.array([line["train/nll"] for line in metrics], dtype=float)
    axes.plot(tokens, nll, color=TRAIN, alpha=0.35, linewidth=0.8)
    smooth = running_mean(nll, max(1, len(nll) // 40))
    axes.plot(tokens, smooth, color=TRAIN, linewidth=1.8, label="train, running mean")
    val = [line for line in metrics if line.get("val/nll") is not None]
    axes.plot([line["tokens"] for line in val], [line["val/nll"] for line in val], "o-", color=VAL, label="val")
    axes.set(xlabel=f"{unit}s seen", ylabel=f"NLL (nats per {unit})")
    axes.legend(frameon=False)
    return svg(figure)


def document_scatter(
    bits_per_byte: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int64], whole: float | None
) -> Markup:
    """Plot bits per byte of each document against its (N,) bytes, and those of the whole split if they are known."""
    figure, axes = new_plot()
    axes.scatter(num_bytes, bits_per_byte, s=14, color=VAL, alpha=0.6, linewidths=0)
    if whole is not None:
        axes.axhline(whole, color=TRAIN, linewidth=1.5, label=f"whole split: {whole:.3f}")
        axes.legend(frameon=False)
    axes.set(xlabel="UTF-8 bytes of the document", ylabel="bits per byte", xscale="log")
    return svg(figure)


def reliability_diagram(reliability: Mapping[str, Reliability], unit: str = "token") -> Figure:
    """Plot accuracy against confidence over a histogram of confidence, as trained and at the fitted T."""
    figure, (axes, shares) = new_plots(2, height=4.6, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--", label="calibrated")
    edges = np.linspace(0, 1, len(reliability["1"].count) + 1)
    for name, color, label in (("fitted", TRAIN, "at the fitted temperature"), ("1", VAL, "as trained")):
        if name not in reliability:
            continue
        bins = reliability[name]
        count, confidence, accuracy = map(np.array, (bins.count, bins.confidence, bins.accuracy))
        filled, as_trained = count > 0, name == "1"
        axes.plot(confidence[filled], accuracy[filled], "o-", color=color, markersize=4, linewidth=1.4, label=label)
        share = count / max(count.sum(), 1)
        shares.stairs(share, edges, color=color, fill=as_trained, alpha=0.5 if as_trained else 1)
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    shares.set(xlabel="confidence (largest probability)", ylabel=f"share of {unit}s")
    return figure


def temperature_curve(evaluation: Evaluation, unit: str = "token") -> Markup | None:
    """Plot NLL against T on the calibration split, its optimum, and the NLL of the scored split at 1 and the fitted T.

    Return None if there is no temperature.
    """
    calibration, metrics = evaluation.calibration, evaluation.metrics
    if calibration is None or calibration.value is None or calibration.curve is None:
        return None
    figure, axes = new_plot()
    curve, fitted = calibration.curve, calibration.value
    points = {1.0: metrics["nll"].value} | {fitted: metrics["nll_at_temperature"].value}
    axes.plot(curve.temperature, curve.nll, color=TRAIN, linewidth=1.8, label="calibration split (a part of it)")
    axes.axvline(fitted, color=TRAIN, linestyle=":", label=f"fitted: T = {fitted:.4g}")
    axes.plot(list(points), list(points.values()), "o", color=VAL, label="the split scored here")
    axes.set(xlabel="temperature", ylabel=f"NLL (nats per {unit})")
    log_temperature(axes)
    axes.legend(frameon=False)
    return svg(figure)


def temperature_by_size(sizes: Sequence[CalibrationSize], unit: str = "token") -> Markup | None:
    """Plot fitted temperatures, and the NLL at each minus that at T = 1, against the number of tokens of the fit.

    Return None if there are no sizes.
    """
    if not sizes:
        return None
    figure, (above, below) = new_plots(2, height=4.6)
    drawn = [
        (size.num_tokens, draw.temperature, draw.nll - size.nll_at_one)
        for size in sizes
        for draw in size.draws
        if draw.temperature is not None and draw.nll is not None
    ]
    num_tokens, temperatures, excess = zip(*drawn, strict=True) if drawn else ((), (), ())
    above.plot(num_tokens, temperatures, "o", color=VAL, markersize=4, alpha=0.6)
    below.plot(num_tokens, excess, "o", color=TRAIN, markersize=4, alpha=0.8)
    below.axhline(0, color=GRAY, linewidth=0.8)
    above.set(ylabel="fitted T", xscale="log")
    below.set(xlabel=f"{unit}s that T is fitted on", ylabel=f"NLL at T - NLL at 1\n(nats per {unit}, val)")
    return svg(figure)


def slice_plot(slices: Sequence[Slice], xlabel: str) -> Markup | None:
    """Plot confidence - accuracy and the entropy gap of groups of tokens, with 95 % intervals; None without groups."""
    if not slices:
        return None
    place, (figure, (above, below)) = np.arange(len(slices)), new_plots(2, height=4.8)
    for axes, color, label, gaps in (
        (above, VAL, "confidence - accuracy", [group.confidence_gap for group in slices]),
        (below, TRAIN, "entropy gap (nats)", [group.entropy_gap for group in slices]),
    ):
        value = np.array([gap.value for gap in gaps])
        low, high = (np.array(ends, dtype=float) for ends in zip(*((gap.low, gap.high) for gap in gaps), strict=True))
        axes.errorbar(place, value, np.nan_to_num([value - low, high - value]), fmt="o", color=color, capsize=3)
        axes.axhline(0, color=GRAY, linewidth=0.8)
        axes.set(ylabel=label)
    below.set_xticks(place, [group.name for group in slices], rotation=30, ha="right")
    below.set(xlabel=xlabel)
    return svg(figure)


def running_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Return the mean of the finite values among the last ``width``, fewer at the start; NaN if there are none."""
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(np.insert(part, 0, 0.0)) for part in (np.where(finite, values, 0.0), finite * 1.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = (sums[end] - sums[start]) / (counts[end] - counts[start])
    return means


def new_plot() -> tuple[Figure, Axes]:
    """Return an empty plot that fits a page, and its axes."""
    figure, (axes,) = new_plots(1, height=3.6)
    return figure, axes


def new_plots(num_rows: int, num_columns: int = 1, *, height: float, **layout: Any) -> tuple[Figure, list[Axes]]:
    """Return empty plots in rows that fit a page, ``height`` inches in all, and the axes of each.

    Args:
        layout: further arguments of matplotlib's ``subplots``; plots in one column share the horizontal axis.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.subplots(num_rows, num_columns, sharex=num_columns == 1, **layout)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, figure.axes


def log_temperature(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers."""
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")


def svg(figure: Figure) -> Markup:
    """Return a plot as inline SVG; a fixed salt and no date, so that the same plot gives the same bytes."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "nanolm", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return Markup(text[text.index("<svg") :])
