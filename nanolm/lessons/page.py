"""The page of the first principles: every step with its formula, figure, table and identities."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nanolm.config.schema_first_principles import FirstPrinciplesConfig
from nanolm.lessons import COLUMNS_OF_WORDS, Plot, Step
from nanolm.report import figures
from nanolm.report.pages import render

COLORS = (figures.VAL, "#1d4ed8", "#15803d", "#6b7280")
MOST_NAMES = 64
"""on an axis; nor are there names outside ASCII, most of which the font of the figures lacks"""
ROOM_FOR_NAMES = 60
"""characters that stand beside each other below an axis"""
STYLES: dict[str, dict[str, Any]] = {
    "line": {"linewidth": 1.6},
    "dots": {"linestyle": "", "marker": "o", "markersize": 4},
}


@dataclass(frozen=True)
class Entry:
    """A step as the page shows it."""

    number: int
    step: Step
    plot: Markup


def write_first_principles_page(path: Path, config: FirstPrinciplesConfig, steps: Sequence[tuple[str, Step]]) -> None:
    """Write the page, which loads nothing from elsewhere, of the steps, each with its part's name."""
    identities = [identity for _, step in steps for identity in step.identities]
    entries = [(part, Entry(number, step, draw(step.plot))) for number, (part, step) in enumerate(steps, 1)]
    render(
        path,
        "first_principles.html",
        title="From first principles",
        lead="From the probability of a dataset to the training of a language model. Every number here was computed "
        "with nanolm.loss when the page was made.",
        parts=[(part, [entry for _, entry in group]) for part, group in groupby(entries, key=itemgetter(0))],
        num_identities=len(identities),
        num_broken=sum(not identity.holds for identity in identities),
        words=COLUMNS_OF_WORDS,
        config=config,
    )


def draw(plot: Plot) -> Markup:
    """A plot with its legend above it, where it covers nothing."""
    figure, axes = figures.new_figure()
    for curve, color in zip(plot.curves, COLORS, strict=False):
        if curve.style == "bars":
            axes.bar(curve.x, curve.y, 0.6, color=color, alpha=0.4, label=curve.label)
        else:
            axes.plot(curve.x, curve.y, color=color, label=curve.label, **STYLES[curve.style])
    for (label, height), dash in zip(plot.levels, ("--", ":"), strict=False):
        axes.axhline(height, color="#6b7280", linewidth=1, linestyle=dash, label=label)
    axes.set(
        xlabel=plot.xlabel,
        ylabel=plot.ylabel,
        xscale="log" if plot.xlog else "linear",
        yscale="log" if plot.ylog else "linear",
    )
    if all(isinstance(x, int) for curve in plot.curves for x in curve.x) and not plot.xlog:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if 0 < len(plot.names) <= MOST_NAMES and all(name.isascii() for name in plot.names):
        fits = sum(map(len, plot.names)) <= ROOM_FOR_NAMES
        rotation = 0 if fits or max(map(len, plot.names)) <= 3 else 90
        axes.set_xticks(plot.curves[0].x, plot.names, rotation=rotation, fontsize=9 if fits else 7, parse_math=False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figures.svg(figure)
