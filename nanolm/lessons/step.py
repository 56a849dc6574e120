"""What one step of the path consists of: words, a formula, figures, identities that hold or do not, a plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

COLUMNS_OF_WORDS = ("token", "q", "summed over", "probabilities", "colour", "most likely")
"""headers of table columns that hold words or lists, and are set flush left; so is every first column"""


@dataclass(frozen=True)
class Identity:
    """Two computations that have to give the same number.

    Attributes:
        statement: the identity in words or symbols.
        left, right: the two results, each computed in its own way.
        tolerance: the largest |left - right| / max(1, |right|); what the floats in use cannot hold.
    """

    statement: str
    left: float
    right: float
    tolerance: float = 1e-12

    @property
    def difference(self) -> float:
        """|left - right| / max(1, |right|)."""
        return abs(self.left - self.right) / max(1.0, abs(self.right))

    @property
    def holds(self) -> bool:
        """Whether the two agree; NaN agrees with nothing."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Curve:
    """One series of a plot; bars are for an x that has nothing in between."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["line", "dots", "bars"] = "line"


@dataclass(frozen=True)
class Plot:
    """Curves on common axes; ``levels`` are labelled horizontal lines, ``names`` stand for the first curve's x."""

    xlabel: str
    ylabel: str
    curves: tuple[Curve, ...]
    levels: tuple[tuple[str, float], ...] = ()
    xlog: bool = False
    ylog: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Step:
    """One step of the path.

    Attributes:
        title: what it shows, as a sentence.
        formula: the identity at its heart.
        about: what is computed, and what to see in it.
        table: header and rows of text.
        identities: what was computed in two ways.
        plot: its figure.
    """

    title: str
    formula: str
    about: str
    table: tuple[tuple[str, ...], ...]
    identities: tuple[Identity, ...]
    plot: Plot


def figure(value: float) -> str:
    """A number as a table shows it: four significant digits; 0, inf and nan by their names."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:#.4g}".rstrip(".") if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"
