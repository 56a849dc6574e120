"""How often the 95 % intervals of an evaluation hold the truth, by the number of documents.

    python benchmarks/interval_coverage.py [--simulations 1000] [--runs RUN OTHER]

Each simulation makes documents whose true metrics are known, forms their intervals as evaluate.py and train.py do, and
checks whether the interval holds the truth. "Simulated" documents have log-normal
lengths (σ = 0.8) and a level of their own; a model that is "calibrated" on them has a true ECE of 0. "Real" documents
are drawn with replacement from those of a finished run's val split, whose metrics are then the truth; two runs on the
same documents give the paired difference. "Blocks" are one text of 64-token cells whose level is an AR(1) process. The
temperature is fitted to simulated logits of five classes whose true temperature differs from document to document. A
share of 1000 simulations that is 0.95 has a standard error of 0.007.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.simulated_text import documents, lengths, text
from nanolm.calibration import fit_temperature_from_logits
from nanolm.metrics import METRICS, Interval, intervals_of, paired_interval, read_units
from nanolm.metrics.definitions import of_rows
from nanolm.metrics.intervals import Floats

COUNTS = (8, 11, 21, 29, 30, 200)
MEASURED = (
    "nll",
    "bits_per_byte",
    "accuracy",
    "confidence",
    "ece",
    "brier",
    "entropy",
    "entropy_gap",
    "nll_at_temperature",
    "calibration_error",
)
"""Perplexity is a function of the NLL, refinement is NLL at T, and debiased ECE has the interval of ECE."""

Draw = Callable[[np.random.Generator], Floats]


def printed(units: Floats, blocks: bool = False) -> dict[str, Interval]:
    """Return the intervals that an evaluation of these sums prints."""
    return intervals_of(units.sum(axis=0, keepdims=True), units) if blocks else intervals_of(units)


def true_values(sums: Floats) -> dict[str, float]:
    return of_rows(sums.sum(axis=0))


def coverage(draw: Draw, truth: dict[str, float], simulations: int, blocks: bool = False) -> dict[str, float]:
    """Share of simulations whose interval holds the truth, by metric; a missing interval does not hold it."""
    hits = dict.fromkeys(MEASURED, 0)
    for seed in range(simulations):
        found = printed(draw(np.random.default_rng(seed)), blocks)
        for name in MEASURED:
            hits[name] += holds(found[name], truth[name])
    return {name: count / simulations for name, count in hits.items()}


def holds(found: Interval, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def simulated(count: int, overconfidence: float, simulations: int) -> dict[str, float]:
    """Documents whose sums are simulated."""
    many = sum(
        documents(np.random.default_rng(10**6 + part), 20_000, 0.8, overconfidence).sum(axis=0) for part in range(10)
    )
    truth = true_values(np.asarray(many)[None])
    if overconfidence == 0:
        truth["ece"] = 0.0
    return coverage(partial(documents, count=count, spread=0.8, overconfidence=overconfidence), truth, simulations)


def of_blocks(num_tokens: int, correlation: float, simulations: int) -> dict[str, float]:
    """One text of this many tokens."""
    long = np.asarray(text(np.random.default_rng(10**6), 500_000, correlation, 0.05))

    def draw(generator: np.random.Generator) -> Floats:
        cells = text(generator, num_tokens // 64, correlation, 0.05)
        return np.add.reduceat(cells, np.arange(64) * len(cells) // 64, axis=0)

    return coverage(draw, true_values(long), simulations, blocks=True)


def real(units: Floats, count: int, simulations: int) -> dict[str, float]:
    """Documents drawn from those of a run."""
    return coverage(
        lambda generator: units[generator.integers(len(units), size=count)], true_values(units), simulations
    )


def real_pairs(units: Floats, others: Floats, count: int, simulations: int) -> dict[str, float]:
    """The difference of two runs on the same documents, drawn together."""
    hits = dict.fromkeys(MEASURED, 0)
    first, second = true_values(units), true_values(others)
    for seed in range(simulations):
        chosen = np.random.default_rng(seed).integers(len(units), size=count)
        for name in MEASURED:
            found = paired_interval(METRICS[name].of_rows, units[chosen], others[chosen])
            hits[name] += holds(found, first[name] - second[name])
    return {name: count / simulations for name, count in hits.items()}


def logits_of(
    generator: np.random.Generator, count: int, scale: float = 100.0
) -> tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.int64]]:
    """(N, 5) logits, (N,) outcomes drawn at a temperature of each document's own, and the (N,) documents."""
    tokens = np.maximum(5, lengths(generator, count, 0.8) / scale).astype(np.int64)
    unit = np.repeat(np.arange(count), tokens)
    logits = generator.normal(0, 2, (len(unit), 5))
    temperature = np.exp(0.2 + 0.15 * generator.normal(size=count))[unit, None]
    outcome = (logits / temperature + generator.gumbel(size=logits.shape)).argmax(axis=1)
    return torch.from_numpy(logits), torch.from_numpy(outcome), unit


def temperature(count: int, simulations: int) -> float:
    """Share of fits whose interval holds the temperature that fits a very large sample."""
    logits, outcome, _ = logits_of(np.random.default_rng(10**6), 20_000)
    truth = fit_temperature_from_logits(logits, outcome).temperature
    hits = 0
    for seed in range(simulations):
        logits, outcome, unit = logits_of(np.random.default_rng(seed), count)
        fit = fit_temperature_from_logits(logits, outcome, units=unit)
        hits += holds(Interval(fit.temperature, fit.low, fit.high), truth)
    return hits / simulations


def rows(simulations: int, runs: list[Path]) -> Iterator[tuple[str, int | str, dict[str, float]]]:
    """Kind of text, its documents, and the shares by metric."""
    for count in COUNTS:
        yield "simulated, calibrated", count, simulated(count, 0.0, simulations)
        yield "simulated, overconfident", count, simulated(count, 0.1, simulations)
    units = [read_units(run / "documents-val.npz")[0] for run in runs]
    for count in COUNTS if units else ():
        yield "real", count, real(units[0], count, simulations)
        if len(units) > 1:
            yield "real, paired difference", count, real_pairs(*units[:2], count, simulations)
    for correlation in (0.0, 0.5, 0.9):
        for num_tokens in (16_384, 131_072):
            kind = f"blocks, {num_tokens:,} tokens"
            yield kind, f"correlation {correlation}", of_blocks(num_tokens, correlation, simulations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="one or two runs scored on the same val")
    options = parser.parse_args()
    print("| text | documents | " + " | ".join(MEASURED) + " |")
    print("| --- " * (2 + len(MEASURED)) + "|")
    for kind, count, shares in rows(options.simulations, options.runs):
        print(f"| {kind} | {count} | " + " | ".join(f"{share:.3f}" for share in shares.values()) + " |", flush=True)
    for count in COUNTS:
        print(f"temperature, {count} documents: {temperature(count, options.simulations):.3f}", flush=True)


if __name__ == "__main__":
    main()
