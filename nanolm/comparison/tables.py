"""A comparison as tables of text, for the terminal and the page alike, and as the rows of a CSV file."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from nanolm.comparison.cells import LANGUAGE_MODEL, Panel, value_text
from nanolm.comparison.differences import COMPARED, ONE_SEED, WITHOUT_TEXT, Difference, Differences, hypotheses
from nanolm.comparison.runs import values_of
from nanolm.comparison.theory import Gap, Smoothed
from nanolm.metrics import METRICS

Rows = list[list[str]]
"""The header of a table, and its rows."""

CSV_HEADER = (
    "task,split,cell,is_baseline,metric,num_runs,mean,standard_deviation,difference,low,high,text_standard_error,"
    "seeds_standard_error,p_value_holm,is_significant,p_equivalence_holm,note"
)


def mean_text(values: Sequence[float], num_runs: int | None = None) -> str:
    """Return the mean and the standard deviation over seeds: ``1.912 ± 0.004``.

    The number of values follows if it differs from ``num_runs``, the runs of the cell.
    """
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    some = f" ({len(values)} runs)" if len(values) != (num_runs or len(values)) else ""
    return f"{np.mean(values):#.4g}{deviation}{some}"


def difference_text(found: Difference | None) -> str:
    """Return ``+0.0412 [+0.0371, +0.0453]`` with the marks that ``about_differences`` explains."""
    if found is None:
        return ""
    interval = found.estimate.interval
    text = f"{interval:+.3g}" + ("*" if found.num_left_out else "") + (" ≈" if found.is_equivalent else "")
    return text if found.is_significant or interval.low is None else f"({text})"


def mean_rows(panel: Panel, metrics: Sequence[str]) -> Rows:
    """Return a row for each cell with the means of the metrics that any cell has."""
    present = [metric for metric in metrics if any(values_of(cell.runs, metric) for cell in panel.cells)]
    rows = [["cell", "runs", *(METRICS[metric].label for metric in present)]]
    for cell in panel.cells:
        means = [mean_text(values_of(cell.runs, metric), len(cell.runs)) for metric in present]
        rows.append([cell.label, str(len(cell.runs)), *means])
    return rows


def difference_rows(panel: Panel, found: Differences, metrics: Sequence[str]) -> Rows:
    """Return a row for each other cell with its differences from the baseline; empty if there is none."""
    present = [metric for metric in metrics if any(compared == metric for _, compared in found)]
    rows = [["cell", *(METRICS[metric].label for metric in present)]]
    for cell in panel.cells:
        if cell is not panel.baseline:
            rows.append([cell.label, *(difference_text(found.get((cell, metric))) for metric in present)])
    return rows if present else []


def about_differences(panel: Panel, found: Differences) -> str:
    """Return sentences that explain the numbers of ``difference_rows``."""
    text, num = "text" if panel.task == LANGUAGE_MODEL else "examples", len(hypotheses(found))
    reasons = {difference.reason for difference in found.values()}
    sentences = [
        f"In brackets: the 95 % interval of one difference, over the {text} and the seeds together. Without brackets: "
        "not tested. In parentheses: not significant, which means p above 0.05 after Holm's correction for "
        f"{num} comparisons; it does not show that there is no difference. *: without the runs whose seed only one of "
        "the two cells has. ≈: equivalent within the margin, by two one-sided tests at 0.05 after Holm's correction."
    ]
    if any(run.blocks for cell in panel.cells for run in cell.runs):
        sentences.append("Intervals are given this text: too few documents to show how documents differ.")
    if ONE_SEED in reasons:
        sentences.append(f"Without a test, over the {text} alone: {ONE_SEED}.")
    sentences += [f"Without a test, over the seeds alone: {reason}." for reason in WITHOUT_TEXT if reason in reasons]
    if panel.task != LANGUAGE_MODEL:
        sentences.append("How much other training examples would change the models is not in the intervals.")
    return " ".join(sentences)


def smoothing_rows(cells: Sequence[Smoothed]) -> Rows:
    """Return a row for each smoothed cell: its accuracy - confidence in theory and as measured."""
    rows = [["cell", "ε (E p_max - 1/V)", "ECE", "acc - conf expected", "acc - conf", "excess", "verdict"]]
    for row in cells:
        means = map(mean_text, (values_of(row.cell.runs, "ece"), row.expected, row.measured))
        rows.append([row.cell.label, f"{row.shift:#.4g}", *means, f"{row.excess.interval:+.3g}", row.verdict])
    return rows


def restoring_rows(cells: Sequence[Smoothed]) -> Rows:
    """Return a row for each smoothed cell: the NLL that a temperature and the inverse map restore."""
    rows = [["cell", "T", "NLL", "NLL at T", "NLL, smoothing inverted", "NLL at ε = 0"]]
    for row in cells:
        measured = [values_of(row.cell.runs, metric) for metric in ("temperature", "nll", "nll_at_temperature")]
        means = map(mean_text, (*measured, row.nll_inverted, values_of(row.plain.runs, "nll")))
        rows.append([row.cell.label, *means])
    return rows


def gap_rows(found: Sequence[Gap]) -> Rows:
    """Return a row for each run: the two gaps, and the first minus the second."""
    rows = [["cell", "seed", "calibration gap", "generalization gap", "first less second"]]
    for gap in found:
        numbers = (gap.calibration, gap.generalization, gap.calibration - gap.generalization)
        rows.append([gap.cell.label, str(gap.seed), *(f"{number:+.4f}" for number in numbers)])
    return rows


def csv_text(compared: Sequence[tuple[Panel, Differences]], split: str) -> str:
    """Return a row for each cell and metric; the last columns are the keys that tell the cells of any panel apart."""
    keys = list(dict.fromkeys(key for panel, _ in compared for key in (*panel.keys, *panel.implied)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_HEADER.split(","), *keys])
    for panel, found in compared:
        for cell in panel.cells:
            settings = [value_text(cell.settings[key]) if key in cell.settings else None for key in keys]
            for metric in COMPARED:
                if values := values_of(cell.runs, metric):
                    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                    row: list[object] = [panel.task, split, cell.label, cell is panel.baseline, metric]
                    row += [len(values), float(np.mean(values)), deviation]
                    if (difference := found.get((cell, metric))) is None:
                        row += [None] * 9
                    else:
                        interval, is_tested = difference.estimate.interval, difference.p_value is not None
                        row += [interval.value, interval.low, interval.high, difference.text, difference.seeds]
                        row += [difference.p_value, difference.is_significant if is_tested else None]
                        row += [difference.p_equivalence, difference.reason]
                    writer.writerow([*row, *settings])
    return text.getvalue()
