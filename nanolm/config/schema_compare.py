"""The configuration of ``python scripts/compare.py``."""

from dataclasses import dataclass

from nanolm.config.schema import ScoredSplit, key


@dataclass(frozen=True)
class CompareConfig:
    """``python scripts/compare.py``"""

    runs: str = key("a folder with finished runs in it, such as sweeps/<name>", text=True)
    split: ScoredSplit = key("the split whose metrics are compared; others than val need evaluation-<split>.json")
    baseline: str | None = key(
        "the cell that the others are compared with, by one of its values, such as loss.label_smoothing=0 "
        "(null: that of the first run)",
        text=True,
    )
    margin: float | None = key(
        "margin within which two cells count as equivalent in NLL, nats per token (null: equivalence is not tested)",
        above=0,
        below=100,
    )
    out: str | None = key("folder for comparison.csv and comparison.html (null: the folder of the runs)", text=True)
