"""A comparison as people and programs read it: tables of text, rows of a CSV file."""

import csv
import io
from collections.abc import Sequence

from nanolm.comparison.cells import LANGUAGE_MODEL, Cell, Panel, shown
from nanolm.comparison.differences import (
    METRICS,
    NOT_TESTED,
    ONE_SEED,
    WITHOUT_TEXT,
    Difference,
    Spread,
    differences,
    num_tests,
    spread,
)
from nanolm.comparison.theory import Gaps, Smoothed
from nanolm.metrics.intervals import Interval

ON_A_TERMINAL = ("nll", "bits_per_byte", "accuracy", "ece_debiased", "entropy_gap", "temperature", "nll_at_temperature")
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
    "low",
    "high",
    "text_standard_error",
    "seeds_standard_error",
    "p_value_holm",
    "is_significant",
    "p_equivalence_holm",
    "note",
)


def spread_text(found: Spread | None) -> str:
    """``1.912 ± 0.004``: mean and standard deviation over seeds."""
    if found is None:
        return "-"
    return f"{found.mean:#.4g}" + ("" if found.deviation is None else f" ± {found.deviation:.2g}")


def difference_text(found: Difference | None) -> str:
    """``+0.0412 [+0.0371, +0.0453]``, in parentheses where it is not significant.

    An asterisk: runs whose seed the other cell lacks play no part. ``≈``: equivalent within the margin.
    """
    if found is None:
        return ""
    text = _signed(found.interval) + ("*" if found.num_left_out else "") + (" ≈" if found.is_equivalent else "")
    return text if found.is_significant or found.interval.low is None else f"({text})"


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


def against_baseline(
    panel: Panel, metrics: Sequence[str] = tuple(METRICS), margin: float | None = None
) -> list[list[str]]:
    """Header and a row for each other cell: its difference from the baseline cell in each metric."""
    found = differences(panel, margin)
    present = [metric for metric in metrics if any(shown == metric for _, shown in found)]
    return [
        ["cell", *(METRICS[metric] for metric in present)],
        *(
            [cell.label, *(difference_text(found.get((cell, metric))) for metric in present)]
            for cell in panel.cells
            if cell is not panel.baseline
        ),
    ]


def about_differences(panel: Panel, metrics: Sequence[str] = tuple(METRICS), margin: float | None = None) -> str:
    """What the numbers of ``against_baseline`` mean, in whole sentences."""
    found = list(differences(panel, margin).values())
    reasons, num = {difference.reason for difference in found}, num_tests(panel, margin)
    text = "text" if panel.task == LANGUAGE_MODEL else "examples"
    sentences = []
    if num:
        about = f"In brackets: 95 % intervals, each of one difference, over the {text} and the seeds together"
        if any(run.blocks for cell in panel.cells for run in cell.runs):
            about += ", given this text (too few documents to show how documents differ)"
        sentences = [
            f"{about}; in parentheses: not significant.",
            f"Significant: p at most 0.05 after Holm's correction for {num} comparison{'' if num == 1 else 's'}.",
            "That a difference is not significant does not show that there is none.",
        ]
    if ONE_SEED in reasons:
        sentences.append(
            f"Where a cell has one seed, intervals are over the {text} alone, and nothing can be called significant."
        )
    without_text = "Some intervals are over the seeds alone, and nothing can be called significant: {}."
    sentences += [without_text.format(reason) for reason in WITHOUT_TEXT if reason in reasons]
    if panel.task != LANGUAGE_MODEL and found:
        sentences.append("How much other training examples would move the models is not in the intervals.")
    if any(difference.p_equivalence is not None for difference in found):
        sentences.append(f"≈: equivalent within ±{margin:g} nats (two one-sided tests, p at most 0.05 after Holm).")
    if found and (untested := [METRICS[metric] for metric in metrics if metric in NOT_TESTED]):
        sentences.append(f"Without brackets: not tested ({', '.join(untested)}).")
    if any(difference.num_left_out for difference in found):
        sentences.append("*: runs whose seed only one of the two cells has are left out.")
    return " ".join(sentences)


def smoothing_rows(cells: Sequence[Smoothed]) -> list[list[str]]:
    """Header and a row for each smoothed cell: how confident theory expects it to be, and how confident it is."""
    header = ["cell", "ε (E p_max - 1/V)", "ECE", "acc - conf expected", "acc - conf", "excess", "verdict"]
    return [
        header,
        *(
            [
                row.cell.label,
                f"{row.ece_if_calibrated:#.4g}",
                *map(spread_text, (row.ece, row.expected_underconfidence, row.underconfidence)),
                _signed(row.excess.interval),
                row.verdict,
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
    """Header and a row for each run: the two gaps, and the one less the other."""
    return [
        ["cell", "seed", "calibration gap", "generalization gap", "first less second"],
        *(
            [
                gap.cell.label,
                str(gap.run.seed),
                f"{gap.calibration:+.4f}",
                f"{gap.generalization:+.4f}",
                f"{gap.calibration - gap.generalization:+.4f}",
            ]
            for gap in found
        ),
    ]


def csv_text(panels: Sequence[Panel], split: str, margin: float | None = None) -> str:
    """One row for each cell and metric; the values of the keys that tell the cells apart have columns of their own."""
    keys = list(dict.fromkeys(key for panel in panels for key in (*panel.keys, *panel.implied)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *keys])
    for panel in panels:
        compared = differences(panel, margin)
        for cell in panel.cells:
            for metric in METRICS:
                found, other = spread(cell.runs, metric), compared.get((cell, metric))
                if found is None:
                    continue
                row = [panel.task, split, cell.label, cell is panel.baseline, metric]
                row += [found.num_runs, found.mean, found.deviation]
                if other is None:
                    row += [None] * (len(CSV_COLUMNS) - len(row))
                else:
                    row += [other.value, other.interval.low, other.interval.high, other.text, other.seeds]
                    row += [other.p_value, None if other.p_value is None else other.is_significant]
                    row += [other.p_equivalence, other.reason]
                row += [shown(cell.settings[key]) if key in cell.settings else None for key in keys]
                writer.writerow(row)
    return text.getvalue()
