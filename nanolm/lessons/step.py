"""One step of the path: text, a formula, a table, a plot, and identities of two computations that must agree."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, SupportsFloat

from numpy.typing import ArrayLike


class Identity(NamedTuple):
    """One number computed in two ways, which may differ by what the precision in use explains."""

    statement: str
    left: SupportsFloat
    right: SupportsFloat
    tolerance: float = 1e-12

    @property
    def holds(self) -> bool:
        """Return whether |left - right| / max(1, |right|) is within the tolerance; NaN agrees with nothing."""
        left, right = float(self.left), float(self.right)
        return abs(left - right) / max(1.0, abs(right)) <= self.tolerance

    def __str__(self) -> str:
        return f"within {self.tolerance:.2g}: {self.statement}: {float(self.left):.10g} and {float(self.right):.10g}"


class Curve(NamedTuple):
    """One series of a plot."""

    style: Literal["bars", "line", "dots"]
    label: str
    x: ArrayLike
    y: ArrayLike


@dataclass
class Step:
    """One step on the path, built up by the methods below.

    Attributes:
        title, formula, about: a sentence, the central identity, and the explanation.
        columns: the cells of the table by their header.
        words: headers of the columns of text, which are flush left as the first column is.
        axes, curves, levels: labels and scales of the plot, its series, and its horizontal lines by their label.
        names: the labels below the bars.
    """

    title: str
    formula: str
    about: str
    columns: dict[str, list[str]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)
    names: Sequence[str] = ()

    @property
    def table(self) -> list[tuple[str, ...]]:
        """Return the header and the rows below it."""
        return [tuple(self.columns), *zip(*self.columns.values(), strict=True)]

    def column(self, header: str, values: Iterable[Any], form: str = "") -> None:
        """Add a column; ``form`` is a format of Python, "digits" for four significant ones, or "words" for text."""
        if form == "words":
            self.words.append(header)
            form = ""
        self.columns[header] = [significant(value) if form == "digits" else format(value, form) for value in values]

    def identity(self, statement: str, left: SupportsFloat, right: SupportsFloat, tolerance: float = 1e-12) -> None:
        """Add two computations of one number, and the difference that the precision in use explains."""
        self.identities.append(Identity(statement, left, right, tolerance))

    def plot(self, xlabel: str, ylabel: str, *, xscale: str = "linear", yscale: str = "linear") -> None:
        """Set the axes of the plot; a scale is "linear" or "log"."""
        self.axes = {"xlabel": xlabel, "ylabel": ylabel, "xscale": xscale, "yscale": yscale}

    def bars(self, label: str, x: ArrayLike, y: ArrayLike, names: Sequence[str] = ()) -> None:
        """Draw bars, with names below them instead of x."""
        self.curves.append(Curve("bars", label, x, y))
        self.names = names

    def line(self, label: str, x: ArrayLike, y: ArrayLike) -> None:
        """Draw a line."""
        self.curves.append(Curve("line", label, x, y))

    def dots(self, label: str, x: ArrayLike, y: ArrayLike) -> None:
        """Draw dots."""
        self.curves.append(Curve("dots", label, x, y))

    def level(self, label: str, height: float) -> None:
        """Draw a horizontal line."""
        self.levels[label] = height


def significant(value: float) -> str:
    """Format a number with four significant digits; 0, inf and nan by their names."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:#.4g}".rstrip(".") if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"
