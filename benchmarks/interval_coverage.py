"""How often 95 % intervals hold the truth, by the number of documents.

    python benchmarks/interval_coverage.py [--simulations 1000]

Documents have log-normal lengths (σ = 1 or 0.5), a level of their own, and tokens around it; what is estimated are the
NLL per token, Σ nll / Σ tokens over documents, and the accuracy. A share of 1000 has a standard error of 0.007.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nanolm.calibration.intervals import bootstrap_interval

Floats = npt.NDArray[np.float64]
NLL = 4.0


def documents(generator: np.random.Generator, count: int, spread: float) -> Floats:
    """(count, 4): tokens, Σ nll, Σ nll² and Σ correct of each document; longer ones are a little easier."""
    tokens = np.maximum(1, np.round(np.exp(generator.normal(5, spread, count))))
    level = NLL + 0.4 * generator.gamma(2, 1, count) - 0.8 - 0.1 * (np.log(tokens) - 5)
    noise = generator.normal(0, 1, count)
    nll_sum = tokens * level + np.sqrt(tokens) * 3 * noise
    correct = generator.binomial(tokens.astype(int), np.clip(0.5 - 0.1 * (level - NLL), 0.02, 0.98))
    return np.stack([tokens, nll_sum, nll_sum**2 / tokens + 9 * tokens, correct], axis=1)


def ratio(column: int) -> Callable[[Floats], Floats]:
    return lambda sums: sums[..., column] / sums[..., 0]


def percentile(statistic: Callable[[Floats], Floats], sums: Floats, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=1000)
    low, high = np.quantile(statistic(counts @ sums), [0.025, 0.975])
    return float(low), float(high)


def naive(sums: Floats) -> tuple[float, float]:
    """Tokens taken for independent."""
    tokens, nll, squares, _ = sums.sum(axis=0)
    mean = nll / tokens
    error = np.sqrt((squares / tokens - mean**2) / tokens)
    return mean - 1.96 * error, mean + 1.96 * error


def coverage(count: int, spread: float, simulations: int, num_resamples: int = 1000) -> dict[str, float]:
    """Shares of simulations whose interval holds the truth."""
    population = documents(np.random.default_rng(10**6), 2_000_000, spread).sum(axis=0)
    truth = {"NLL": population[1] / population[0], "accuracy": population[3] / population[0]}
    hits = {"naive, NLL": 0, "percentile, NLL": 0, "ours, NLL": 0, "ours, accuracy": 0}
    for seed in range(simulations):
        sums = documents(np.random.default_rng(seed), count, spread)
        intervals = {
            "naive, NLL": naive(sums),
            "percentile, NLL": percentile(ratio(1), sums, seed),
        }
        for name, column in (("NLL", 1), ("accuracy", 3)):
            found = bootstrap_interval(ratio(column), sums, seed=seed, num_resamples=num_resamples)
            assert found.low is not None
            assert found.high is not None
            intervals[f"ours, {name}"] = (found.low, found.high)
        for name, (low, high) in intervals.items():
            hits[name] += low <= truth[name.rpartition(", ")[2]] <= high
    return {name: hit / simulations for name, hit in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    simulations = parser.parse_args().simulations
    for count, spread in itertools.product((10, 20, 30, 200), (1.0, 0.5)):
        found = coverage(count, spread, simulations)
        print(
            f"{count:4} documents, σ = {spread}: " + ", ".join(f"{name} {share:.3f}" for name, share in found.items())
        )


if __name__ == "__main__":
    main()
