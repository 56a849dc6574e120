"""Finished runs side by side: cells of equal configuration, seeds within them, differences with their intervals."""

from nanolm.comparison.cells import Cell, Panel, make_panels
from nanolm.comparison.differences import METRICS, Difference, Spread
from nanolm.comparison.run import compare_runs, summarize_sweep
from nanolm.comparison.runs import Run, find_runs

__all__ = [
    "METRICS",
    "Cell",
    "Difference",
    "Panel",
    "Run",
    "Spread",
    "compare_runs",
    "find_runs",
    "make_panels",
    "summarize_sweep",
]
