"""Figures of the pages."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

TRAIN, VAL = "#8fa3bf", "#c2410c"


def training_curve(metrics: Sequence[dict[str, Any]], unit: str = "token") -> Markup:
    """Training NLL of every step, its running mean, and val NLL, against tokens seen (or another unit)."""
    figure, axes = new_figure()
    tokens = np.array([line["tokens"] for line in metrics], dtype=float)
    nll = np.array([line["train/nll"] for line in metrics], dtype=float)
    axes.plot(tokens, nll, color=TRAIN, alpha=0.35, linewidth=0.8)
    axes.plot(
        tokens, running_mean(nll, max(1, len(nll) // 40)), color=TRAIN, linewidth=1.8, label="train, running mean"
    )
    val = [line for line in metrics if line.get("val/nll") is not None]
    axes.plot([line["tokens"] for line in val], [line["val/nll"] for line in val], "o-", color=VAL, label="val")
    axes.set(xlabel=f"{unit}s seen", ylabel=f"NLL (nats per {unit})")
    axes.legend(frameon=False)
    return svg(figure)


def document_scatter(
    bits_per_byte: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int64], whole: float | None
) -> Markup:
    """Bits per byte of each document against its length, with the figure of the whole split where it has one."""
    figure, axes = new_figure()
    axes.scatter(num_bytes, bits_per_byte, s=14, color=VAL, alpha=0.6, linewidths=0)
    if whole is not None:
        axes.axhline(whole, color=TRAIN, linewidth=1.5, label=f"whole split: {whole:.3f}")
        axes.legend(frameon=False)
    axes.set(xlabel="UTF-8 bytes of the document", ylabel="bits per byte", xscale="log")
    return svg(figure)


def reliability_diagram(reliability: dict[str, dict[str, list[float]]], unit: str = "token") -> Figure:
    """Accuracy against confidence in 15 bins over a histogram of confidence, at T = 1 and at the fitted T.

    ``reliability`` maps "1" and, where there is one, "fitted" to count, confidence and accuracy of each bin.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes, shares = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle="--", label="calibrated")
    edges = np.linspace(0, 1, len(reliability["1"]["count"]) + 1)
    for name, color, label in (("fitted", TRAIN, "at the fitted temperature"), ("1", VAL, "as trained")):
        if name not in reliability:
            continue
        count, confidence, accuracy = (
            np.array(reliability[name][part]) for part in ("count", "confidence", "accuracy")
        )
        filled = count > 0
        axes.plot(confidence[filled], accuracy[filled], "o-", color=color, markersize=4, linewidth=1.4, label=label)
        shares.stairs(
            count / max(count.sum(), 1), edges, color=color, fill=name == "1", alpha=0.5 if name == "1" else 1
        )
    axes.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    shares.set(xlabel="confidence (largest probability)", ylabel=f"share of {unit}s")
    for part in (axes, shares):
        part.spines[["top", "right"]].set_visible(False)
        part.grid(alpha=0.25)
    return figure


def temperature_curve(
    curve: dict[str, list[float]], fitted: float, points: dict[float, float], unit: str = "token"
) -> Markup:
    """NLL against T on the calibration split, its optimum, and ``points`` of T and NLL on the scored split."""
    figure, axes = new_figure()
    axes.plot(curve["temperature"], curve["nll"], color=TRAIN, linewidth=1.8, label="calibration split (a part of it)")
    axes.axvline(fitted, color=TRAIN, linestyle=":", label=f"fitted: T = {fitted:.4g}")
    axes.plot(list(points), list(points.values()), "o", color=VAL, label="the split scored here")
    axes.set(xlabel="temperature", ylabel=f"NLL (nats per {unit})", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    return svg(figure)


def temperature_by_size(sizes: Sequence[dict[str, Any]], unit: str = "token") -> Markup:
    """Fitted temperatures, and what val pays at each less what it pays at T = 1, against the size of the split.

    ``sizes`` is ``calibration_sizes`` of an evaluation, or those of several runs one after the other.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    drawn = [(entry, draw) for entry in sizes for draw in entry["draws"] if draw["temperature"] is not None]
    num_tokens = [entry["num_tokens"] for entry, _ in drawn]
    above.plot(num_tokens, [draw["temperature"] for _, draw in drawn], "o", color=VAL, markersize=4, alpha=0.6)
    excess = [draw["nll"] - entry["nll_at_one"] for entry, draw in drawn]
    below.plot(num_tokens, excess, "o", color=TRAIN, markersize=4, alpha=0.8)
    below.axhline(0, color="#6b7280", linewidth=0.8)
    above.set(ylabel="fitted T", xscale="log")
    below.set(xlabel=f"{unit}s that T is fitted on", ylabel=f"NLL at T - NLL at 1\n(nats per {unit}, val)")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return svg(figure)


def slice_figure(slices: Sequence[dict[str, Any]], xlabel: str) -> Markup:
    """Confidence - accuracy and entropy gap of groups of tokens, each with its 95 % interval where it has one."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    place = np.arange(len(slices))
    panels = (("confidence_gap", VAL, "confidence - accuracy"), ("entropy_gap", TRAIN, "entropy gap (nats)"))
    for axes, (name, color, label) in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
        value, low, high = (
            np.array([np.nan if group[name][part] is None else group[name][part] for group in slices], dtype=float)
            for part in ("value", "low", "high")
        )
        axes.errorbar(place, value, np.nan_to_num([value - low, high - value]), fmt="o", color=color, capsize=3)
        axes.axhline(0, color="#6b7280", linewidth=0.8)
        axes.set(ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.set_xticks(place, [group["name"] for group in slices], rotation=30, ha="right")
    axes.set(xlabel=xlabel)
    return svg(figure)


def running_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Mean of the finite ones of the last ``width`` values, of fewer at the start; NaN where there is none."""
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(np.insert(part, 0, 0.0)) for part in (np.where(finite, values, 0.0), finite * 1.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = (sums[end] - sums[start]) / (counts[end] - counts[start])
    return means


def new_figure() -> tuple[Figure, Any]:
    """A figure of the pages' size and its axes."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def png(figure: Figure) -> bytes:
    """A figure as an image, for places that do not take SVG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def svg(figure: Figure) -> Markup:
    """A figure as inline SVG; the same figure gives the same bytes."""
    content = io.StringIO()
    # A fixed salt and no date: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "nanolm", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    return Markup(text[text.index("<svg") :])
