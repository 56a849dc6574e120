"""From a folder of runs to a table, a CSV file and a page."""

import textwrap
from pathlib import Path
from typing import get_args

from nanolm.comparison import tables
from nanolm.comparison.cells import Panel, make_panels
from nanolm.comparison.differences import Differences, differences
from nanolm.comparison.page import write_comparison_page
from nanolm.comparison.runs import find_runs
from nanolm.comparison.theory import smoothed_cells
from nanolm.config.schema import CompareConfig, ScoredSplit
from nanolm.errors import ConfigError, NanolmError
from nanolm.files import require_writable, write_atomically
from nanolm.tracking import Console
from nanolm.tracking.tables import aligned

ON_A_TERMINAL = ("nll", "bits_per_byte", "accuracy", "ece_debiased", "entropy_gap", "temperature", "nll_at_temperature")


def compare_runs(config: CompareConfig) -> Path:
    """Print tables and write ``comparison[-<split>].csv`` and ``….html``; return the path of the page.

    Raises:
        NanolmError: no such folder, no finished run in it, no such baseline.
    """
    folder = Path(config.runs)
    if not folder.is_dir():
        raise ConfigError(f"runs={folder}: no such folder; give one that holds finished runs, such as sweeps/NAME")
    out = Path(config.out) if config.out else folder
    runs, unfinished = find_runs(folder, config.split)
    panels = make_panels(runs, config.baseline)
    compared = [(panel, differences(panel, config.margin)) for panel in panels]
    require_writable(out, "out")
    name = "comparison" if config.split == "val" else f"comparison-{config.split}"
    page, console = out / f"{name}.html", Console()
    write_atomically(page.with_suffix(".csv"), tables.csv_text(compared, config.split))
    write_comparison_page(page, config, compared, runs, unfinished)
    for panel, found in compared:
        console.result(panel_text(panel, found, config))
        if panel.repeated:
            listed = "\n  ".join(str(run.path) for run in panel.repeated)
            console.note(f"left out, since a later run has the same configuration and seed:\n  {listed}")
    if unfinished:
        listed = "\n  ".join(str(path) for path in unfinished)
        console.note(f"not finished, so left out, {len(unfinished)}:\n  {listed}")
    console.result(str(page))
    return page


def summarize_sweep(folder: Path) -> None:
    """Compare the runs of a sweep, on val and on every other split that any of them was scored on.

    If no run is finished, a note says so; the errors of the jobs were printed before.
    """
    others = set(get_args(ScoredSplit)) - {"val"}
    scored = [split for split in sorted(others) if any(folder.glob(f"*/evaluation-{split}.json"))]
    for split in ("val", *scored):
        print()
        try:
            compare_runs(CompareConfig(runs=str(folder), split=split, baseline=None, margin=None, out=None))
        except NanolmError as error:
            Console().note(str(error))


def panel_text(panel: Panel, found: Differences, config: CompareConfig) -> str:
    """Return the tables of a panel as text for a terminal."""
    cells = f"{len(panel.cells)} cell{'' if len(panel.cells) == 1 else 's'}"
    keys = ", ".join(panel.keys) or "one configuration"
    implied = f" (and with it {', '.join(panel.implied)})" if panel.implied else ""
    title = f"{Path(config.runs)}, {panel.task}, {config.split}: {cells} of {keys}{implied}; mean ± standard deviation"
    parts = [aligned(f"{title} over seeds", tables.mean_rows(panel, ON_A_TERMINAL))]
    if rows := tables.difference_rows(panel, found, ON_A_TERMINAL):
        parts.append(aligned(f"less the baseline, {panel.baseline.label}:", rows))
        parts.append(textwrap.indent(textwrap.fill(tables.about_differences(panel, found), 98), "  "))
    if smoothed := smoothed_cells(panel):
        theory = "label smoothing, theory and measurement; 95 % intervals over text and seeds, verdicts after Holm"
        parts.append(aligned(theory, tables.smoothing_rows(smoothed)))
        parts.append(aligned("what restores the NLL of a model without smoothing", tables.restoring_rows(smoothed)))
    return "\n\n".join(parts)
