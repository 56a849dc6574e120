"""How often a comparison of a configuration with itself calls a difference significant, and how often intervals hold 0.

    python benchmarks/comparison_errors.py [--tables 500]

Runs of one configuration are dealt into two cells (an A/A test) and compared as scripts/compare.py does. Each run has a
level of its own (the seed), each document too, and each document in each run. "Any significant" is the share of tables
with at least one significant difference among all metrics, which should be at most 0.05; the other columns are shares
of 95 % intervals that hold 0. A share of 500 tables that is 0.05 has a standard error of 0.010.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

from benchmarks.simulated_text import lengths, sums_of
from nanolm.comparison import differences, make_panels
from nanolm.comparison.runs import Run
from nanolm.metrics import Evaluation, Interval, column
from nanolm.metrics.definitions import of_rows
from nanolm.metrics.intervals import Floats

SHOWN = ("nll", "accuracy", "ece_debiased", "brier", "entropy_gap", "temperature", "nll_at_temperature")


def run_of(cell: int, seed: int, units: Floats, temperature: tuple[float, float], blocks: bool) -> Run:
    """A finished run with these sums. Its debiased ECE is the plugin one here, whose bias both cells share."""
    metrics = {name: Interval(value) for name, value in of_rows(units.sum(axis=0)).items()}
    metrics["ece_debiased"] = metrics["ece"]
    fitted, error = temperature
    metrics["temperature"] = Interval(fitted, fitted - 2.2 * error, fitted + 2.2 * error)
    evaluation = Evaluation(
        split="val",
        step=1,
        num_tokens=int(column(units, "tokens").sum()),
        num_documents=len(units),
        num_classes=256,
        intervals="",
        metrics=metrics,
        reliability={},
        corpus="one",
    )
    return Run(Path(f"{cell}/{seed}"), {"seed": seed, "trainer.note": cell}, evaluation, units, blocks)


def table(
    generator: np.random.Generator, num_documents: int, num_seeds: int, seed_deviation: float, common: bool
) -> list[Run]:
    """Two cells of runs of one configuration; with ``common`` equal numbers of seeds, and something alike in these."""
    tokens = lengths(generator, num_documents, 0.8)
    level = generator.normal(size=num_documents)
    shared = generator.normal(size=num_seeds)
    on_text = generator.normal() * 0.008  # how T comes out on this calibration text, for all runs
    runs = []
    for cell, place in itertools.product((0, 1), range(num_seeds)):
        quality = generator.normal() + (shared[place] if common else 0)
        own = seed_deviation * (quality + 0.5 * generator.normal(size=num_documents))
        units = sums_of(generator, tokens, level, 0.02, own)
        temperature = 1 + on_text + 0.005 * quality + 0.003 * generator.normal()
        seed = place if common else cell * num_seeds + place
        runs.append(run_of(cell, seed, units, (temperature, 0.008), blocks=False))
    return runs


def errors(
    tables: int, num_documents: int, num_seeds: int, seed_deviation: float = 0.02, common: bool = False
) -> dict[str, float]:
    """Share of tables with a significant difference, and of intervals that hold 0 by metric."""
    any_significant, holds = 0, dict.fromkeys(SHOWN, 0)
    for number in range(tables):
        (panel,) = make_panels(table(np.random.default_rng(number), num_documents, num_seeds, seed_deviation, common))
        found = {metric: difference for (_, metric), difference in differences(panel).items()}
        any_significant += any(difference.is_significant for difference in found.values())
        for metric in SHOWN:
            interval = found[metric].estimate.interval
            assert interval.low is not None
            assert interval.high is not None
            holds[metric] += interval.low <= 0 <= interval.high
    return {"any significant": any_significant / tables} | {name: count / tables for name, count in holds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=500)
    tables = parser.parse_args().tables
    print("| documents | seeds | seeds' deviation (nats) | numbers | any significant | " + " | ".join(SHOWN) + " |")
    print("| --- " * (5 + len(SHOWN)) + "|")
    for num_documents, deviation, common in itertools.product((11, 30), (0.002, 0.02), (False, True)):
        for num_seeds in (3, 5, 10):
            found = errors(tables, num_documents, num_seeds, deviation, common)
            kind = "equal" if common else "different"
            shares = " | ".join(f"{share:.3f}" for share in found.values())
            print(f"| {num_documents} | {num_seeds} | {deviation} | {kind} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
