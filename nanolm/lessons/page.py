"""The page of the first principles: every step with its formula, plot, table and identities."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from markupsafe import Markup

from nanolm.config.schema import FirstPrinciplesConfig
from nanolm.lessons.step import Step
from nanolm.report import plots
from nanolm.report.pages import render

COLORS = (plots.VAL, "#1d4ed8", "#15803d", plots.GRAY)
MOST_NAMES = 64
"""names on an axis, which are ASCII: the font of the plots lacks most other characters"""
ROOM_FOR_NAMES = 60
"""characters that fit on one line below an axis"""


def write_page(path: Path, config: FirstPrinciplesConfig, steps: Sequence[tuple[str, Step]]) -> None:
    """Write a self-contained page of the steps, each with the name of its part."""
    render(
        path,
        "first_principles.html",
        package="nanolm.lessons",
        title="From first principles",
        lead="From the probability of a dataset to the training of a language model. Every number here was computed "
        "with nanolm.loss when the page was made.",
        steps=[(part, step, draw(step)) for part, step in steps],
        held=[identity.holds for _, step in steps for identity in step.identities],
        config=config,
    )


def draw(step: Step) -> Markup:
    """Return the plot of a step as SVG, with its legend above it."""
    figure, axes = plots.new_plot()
    for (style, label, x, y), color in zip(step.curves, cycle(COLORS), strict=False):
        if style == "bars":
            axes.bar(x, y, 0.6, color=color, alpha=0.4, label=label)
            axes.locator_params(axis="x", integer=True)
        else:
            axes.plot(x, y, "-" if style == "line" else "o", color=color, linewidth=1.6, markersize=4, label=label)
    for (label, height), dash in zip(step.levels.items(), ("--", ":"), strict=False):
        axes.axhline(height, color=plots.GRAY, linewidth=1, linestyle=dash, label=label)
    axes.set(**step.axes)
    if 0 < len(step.names) <= MOST_NAMES and all(name.isascii() for name in step.names):
        fits = sum(map(len, step.names)) <= ROOM_FOR_NAMES
        rotation = 0 if fits or max(map(len, step.names)) <= 3 else 90
        axes.set_xticks(step.curves[0].x, step.names, rotation=rotation, fontsize=9 if fits else 7, parse_math=False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return plots.svg(figure)
