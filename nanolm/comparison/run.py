"""From a folder of runs to a table, a CSV file and a page."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from nanolm.comparison.cells import Panel, make_panels
from nanolm.comparison.runs import Run, find_runs
from nanolm.comparison.tables import (
    ON_A_TERMINAL,
    about_differences,
    against_baseline,
    csv_text,
    means,
    restoring_rows,
    smoothing_rows,
)
from nanolm.comparison.theory import smoothed_cells
from nanolm.config.schema import ScoredSplit
from nanolm.config.schema_compare import CompareConfig
from nanolm.errors import ConfigError, NanolmError
from nanolm.files import require_writable, write_atomically
from nanolm.tracking import Console
from nanolm.tracking.tables import aligned


@dataclass(frozen=True)
class Comparison:
    """What the page shows."""

    folder: Path
    split: str
    runs: Sequence[Run]
    unfinished: Sequence[Path]
    panels: Sequence[Panel]
    margin: float | None = None
    """of equivalence in NLL, nats per token"""


WritePage = Callable[[Path, Comparison], None]


def compare_runs(config: CompareConfig, write_page: WritePage) -> Path:
    """Print a table and leave ``comparison.csv`` and ``comparison.html``; for another split than val with its name.

    Returns:
        the page.

    Raises:
        NanolmError: no such folder, no finished run in it, no such baseline.
    """
    folder = Path(config.runs)
    if not folder.is_dir():
        raise ConfigError(f"runs={folder}: no such folder; give one that holds finished runs, such as sweeps/NAME")
    out = Path(config.out) if config.out else folder
    runs, unfinished = find_runs(folder, config.split)
    panels = make_panels(runs, config.baseline)
    comparison = Comparison(folder, config.split, runs, unfinished, panels, config.margin)
    require_writable(out, "out")
    name = "comparison" if config.split == "val" else f"comparison-{config.split}"
    write_atomically(out / f"{name}.csv", csv_text(panels, config.split, config.margin))
    write_page(out / f"{name}.html", comparison)
    console = Console()
    for panel in comparison.panels:
        console.result(panel_text(panel, comparison))
        if panel.repeated:
            listed = "\n  ".join(str(run.path) for run in panel.repeated)
            console.note(f"left out, since a later run has the same configuration and seed:\n  {listed}")
    if unfinished:
        listed = "\n  ".join(str(path) for path in unfinished)
        console.note(f"not finished, so left out, {len(unfinished)}:\n  {listed}")
    console.result(str(out / f"{name}.html"))
    return out / f"{name}.html"


def summarize_sweep(folder: Path, write_page: WritePage) -> None:
    """Compare the runs of a sweep, on val and on every other split that any of them was scored on.

    A sweep without a finished run is a note: what its jobs had to say was said.
    """
    further = [split for split in sorted(get_args(ScoredSplit)) if any(folder.glob(f"*/evaluation-{split}.json"))]
    for split in ("val", *(split for split in further if split != "val")):
        print()
        try:
            compare_runs(CompareConfig(runs=str(folder), split=split, baseline=None, margin=None, out=None), write_page)
        except NanolmError as error:
            Console().note(str(error))


def panel_text(panel: Panel, comparison: Comparison) -> str:
    """What a terminal shows of a panel."""
    with_it = f" (and with it {', '.join(panel.implied)})" if panel.implied else ""
    title = (
        f"{comparison.folder}, {panel.task}, {comparison.split}: {len(panel.cells)} "
        f"cell{'' if len(panel.cells) == 1 else 's'} of {', '.join(panel.keys) or 'one configuration'}"
        f"{with_it}; mean ± standard deviation over seeds"
    )
    parts = [aligned(title, means(panel, ON_A_TERMINAL))]
    differences = against_baseline(panel, ON_A_TERMINAL, comparison.margin)
    if len(differences) > 1 and len(differences[0]) > 1:
        parts.append(aligned(f"less the baseline, {panel.baseline.label}:", differences))
        parts.append(
            textwrap.fill(
                about_differences(panel, ON_A_TERMINAL, comparison.margin),
                100,
                initial_indent="  ",
                subsequent_indent="  ",
            )
        )
    if smoothed := smoothed_cells(panel):
        theory = "label smoothing, theory and measurement; 95 % intervals over text and seeds, verdicts after Holm"
        parts.append(aligned(theory, smoothing_rows(smoothed)))
        parts.append(aligned("what brings back the NLL of a model without smoothing", restoring_rows(smoothed)))
    return "\n\n".join(parts)
