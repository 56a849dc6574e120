"""Compare finished runs: means over seeds, differences from a baseline with intervals, theory against measurement."""

from nanolm.comparison.cells import make_panels
from nanolm.comparison.compare import compare_runs, summarize_sweep
from nanolm.comparison.differences import differences
from nanolm.comparison.runs import find_runs

__all__ = ["compare_runs", "differences", "find_runs", "make_panels", "summarize_sweep"]
