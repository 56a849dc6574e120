"""Figures as inline SVG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.figure import Figure

TRAIN, VAL = "#8fa3bf", "#c2410c"


def training_curve(metrics: Sequence[dict[str, Any]]) -> Markup:
    """Training NLL of every step, its running mean, and val NLL, against tokens seen."""
    figure, axes = _figure()
    tokens = np.array([line["tokens"] for line in metrics], dtype=float)
    nll = np.array([line["train/nll"] for line in metrics], dtype=float)
    axes.plot(tokens, nll, color=TRAIN, alpha=0.35, linewidth=0.8)
    axes.plot(
        tokens, running_mean(nll, max(1, len(nll) // 40)), color=TRAIN, linewidth=1.8, label="train, running mean"
    )
    val = [line for line in metrics if line.get("val/nll") is not None]
    axes.plot([line["tokens"] for line in val], [line["val/nll"] for line in val], "o-", color=VAL, label="val")
    axes.set(xlabel="tokens seen", ylabel="NLL (nats per token)")
    axes.legend(frameon=False)
    return _svg(figure)


def document_scatter(
    bits_per_byte: npt.NDArray[np.float64], num_bytes: npt.NDArray[np.int64], whole: float | None
) -> Markup:
    """Bits per byte of each document against its length, with the figure of the whole split where it has one."""
    figure, axes = _figure()
    axes.scatter(num_bytes, bits_per_byte, s=14, color=VAL, alpha=0.6, linewidths=0)
    if whole is not None:
        axes.axhline(whole, color=TRAIN, linewidth=1.5, label=f"whole split: {whole:.3f}")
        axes.legend(frameon=False)
    axes.set(xlabel="UTF-8 bytes of the document", ylabel="bits per byte", xscale="log")
    return _svg(figure)


def running_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Mean of the finite ones of the last ``width`` values, of fewer at the start; NaN where there is none."""
    finite = np.isfinite(values)
    sums, counts = (np.cumsum(np.insert(part, 0, 0.0)) for part in (np.where(finite, values, 0.0), finite * 1.0))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - width, 0)
    with np.errstate(invalid="ignore"):
        means: npt.NDArray[np.float64] = (sums[end] - sums[start]) / (counts[end] - counts[start])
    return means


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    content = io.StringIO()
    # A fixed salt and no date: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "nanolm", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    svg = content.getvalue()
    return Markup(svg[svg.index("<svg") :])
