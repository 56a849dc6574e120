"""A comparison as people and programs read it: tables of text, rows of a CSV file."""

import csv
import io
from collections.abc import Sequence

from nanolm.calibration.intervals import Interval
from nanolm.comparison.cells import Cell, Panel, shown
from nanolm.comparison.differences import METRICS, Difference, Spread, difference, spread
from nanolm.comparison.theory import Gaps, Smoothed

ON_A_TERMINAL = ("nll", "bits_per_byte", "accuracy", "ece", "entropy_gap", "temperature", "nll_at_temperature")
CSV_COLUMNS = (
    "task",
    "split",
    "cell",
    "is_baseline",
    "metric",
    "num_runs",
    "mean",
    "standard_deviation",
    "difference",
    "documents_low",
    "documents_high",
    "seeds_low",
    "seeds_high",
    "is_clear",
)


def spread_text(found: Spread | None) -> str:
    """``1.912 ± 0.004``: mean and standard deviation over seeds."""
    if found is None:
        return "-"
    return f"{found.mean:#.4g}" + ("" if found.deviation is None else f" ± {found.deviation:.2g}")


def difference_text(found: Difference | None) -> str:
    """``+0.0412 [+0.0371, +0.0453]``, the interval over documents; in parentheses where it is not clear.

    An asterisk: some seeds are of one cell alone and play no part.
    """
    if found is None:
        return ""
    text = _signed(found.documents) + ("*" if found.num_left_out else "")
    return text if found.is_clear else f"({text})"


def means(panel: Panel, metrics: Sequence[str] = tuple(METRICS)) -> list[list[str]]:
    """Header and a row for each cell: mean ± standard deviation of each metric that any cell has."""
    present = [metric for metric in metrics if any(spread(cell.runs, metric) for cell in panel.cells)]
    return [
        ["cell", "runs", *(METRICS[metric] for metric in present)],
        *(
            [cell.label, str(len(cell.runs)), *(_of_some(spread(cell.runs, metric), cell) for metric in present)]
            for cell in panel.cells
        ),
    ]


def _of_some(found: Spread | None, cell: Cell) -> str:
    """The spread, with the number of runs that it is of where some lack the figure."""
    if found is None or found.num_runs == len(cell.runs):
        return spread_text(found)
    return f"{spread_text(found)} ({found.num_runs} runs)"


def against_baseline(panel: Panel, metrics: Sequence[str] = tuple(METRICS)) -> list[list[str]]:
    """Header and a row for each other cell: its difference from the baseline cell in each metric."""
    others = [cell for cell in panel.cells if cell is not panel.baseline]
    found = {metric: [difference(cell, panel.baseline, metric) for cell in others] for metric in metrics}
    present = [metric for metric in metrics if any(found[metric])]
    return [
        ["cell", *(METRICS[metric] for metric in present)],
        *(
            [cell.label, *(difference_text(found[metric][row]) for metric in present)]
            for row, cell in enumerate(others)
        ),
    ]


def smoothing_rows(cells: Sequence[Smoothed]) -> list[list[str]]:
    """Header and a row for each smoothed cell: how sure theory expects it to be, and how sure it is."""
    header = ["cell", "ε (E p_max - 1/V)", "ECE", "acc - conf expected", "acc - conf", "excess", "0 in it"]
    return [
        header,
        *(
            [
                row.cell.label,
                f"{row.ece_if_calibrated:#.4g}",
                *map(spread_text, (row.ece, row.expected_underconfidence, row.underconfidence)),
                _signed(row.excess),
                {True: "yes", False: "no", None: "-"}[row.obeys],
            ]
            for row in cells
        ),
    ]


def restoring_rows(cells: Sequence[Smoothed]) -> list[list[str]]:
    """Header and a row for each smoothed cell: what a temperature and what the inverse map bring back."""
    return [
        ["cell", "T", "NLL", "NLL at T", "NLL, smoothing inverted", "NLL at ε = 0"],
        *(
            [
                row.cell.label,
                *map(
                    spread_text,
                    (row.temperature, row.nll, row.nll_at_temperature, row.nll_inverted, row.nll_plain),
                ),
            ]
            for row in cells
        ),
    ]


def _signed(interval: Interval) -> str:
    text = f"{interval.value:+.3g}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{interval.low:+.3g}, {interval.high:+.3g}]"


def gap_rows(found: Sequence[Gaps]) -> list[list[str]]:
    """Header and a row for each run: the two gaps, and whether the one is within the other."""
    return [
        ["cell", "seed", "calibration gap", "generalization gap", "within the bound"],
        *(
            [
                gap.cell.label,
                str(gap.run.seed),
                f"{gap.calibration:+.4f}",
                f"{gap.generalization:+.4f}",
                "yes" if gap.within_bound else "no",
            ]
            for gap in found
        ),
    ]


def csv_text(panels: Sequence[Panel], split: str) -> str:
    """One row for each cell and metric; the values of the keys that tell the cells apart have columns of their own."""
    keys = list(dict.fromkeys(key for panel in panels for key in (*panel.keys, *panel.implied)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *keys])
    for panel in panels:
        for cell in panel.cells:
            for metric in METRICS:
                found = spread(cell.runs, metric)
                if found is None:
                    continue
                other = None if cell is panel.baseline else difference(cell, panel.baseline, metric)
                numbers: list[float | None] = [None] * 6
                if other is not None:
                    bounds = (other.documents.low, other.documents.high, other.seeds.low, other.seeds.high)
                    numbers = [other.value, *bounds, other.is_clear]
                writer.writerow(
                    [
                        *(panel.task, split, cell.label, cell is panel.baseline, metric),
                        *(found.num_runs, found.mean, found.deviation),
                        *("" if number is None else number for number in numbers),
                        *(shown(cell.settings[key]) if key in cell.settings else "" for key in keys),
                    ]
                )
    return text.getvalue()
