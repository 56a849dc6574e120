"""How often 95 % intervals of cross-validated metrics hold the truth.

    python benchmarks/cross_validation_coverage.py [task.model=mlp …] [--simulations 200] [--sizes 100 200 300 600]

Examples are drawn from a known distribution (five features, a logistic model of class 1) and go through the route of
``scripts/baseline.py``: folds, standardised features, Adam, out-of-fold predictions, intervals over examples. Each is
compared with two truths, computed from the known class probabilities on 20,000 fresh draws of the features:

- given these fits: the mean risk of the fold models that made the predictions;
- procedure: the mean risk over all simulations, that is over training sets of this size.

``plain`` is the interval as it is printed. ``k-fold`` has its half-widths multiplied by sqrt((2k-1)/(k-1)), the
correction of Nadeau and Bengio (2003) for training data that folds share, in one repeat of k folds; ``learned from`` by
sqrt(1 + k n_scored / n_learning), with what a fold really learns from. ``z`` is the standard deviation of the error
over its mean standard error (half of the interval's width over 1.96): 1 where the width is right. A share of 200 near
0.95 has a standard error of 0.015.
"""

import argparse
import math
from collections import defaultdict

import numpy as np
import torch

from nanolm.classifiers import CrossValidation, Dataset
from nanolm.config import load
from nanolm.config.schema import BaselineConfig
from nanolm.metrics import Interval

METRICS = ("nll", "accuracy", "brier")
NUM_FEATURES = 5
NUM_FRESH = 20_000


def draw(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (count, F) features, (count,) probabilities of class 1, and classes drawn from them."""
    features = generator.normal(size=(count, NUM_FEATURES))
    probabilities = 1 / (1 + np.exp(-(features @ np.array([1.5, -1.0, 0.75, 0.0, 0.0]) + 0.3)))
    return features, probabilities, (generator.uniform(size=count) < probabilities).astype(np.int64)


def risk(validation: CrossValidation, features: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the mean over the fold models of what each metric is expected to be on fresh examples."""
    found = defaultdict(list)
    for model in validation.models:
        learning = validation.dataset.features[model.fold.learning]
        scaled = (features - learning.mean(axis=0)) / learning.std(axis=0)
        z = model.logits(torch.from_numpy(scaled)).numpy()
        p = 1 / (1 + np.exp(-z))
        found["nll"].append(np.mean(np.logaddexp(0, z) - truth * z))
        found["accuracy"].append(np.mean(np.where(z > 0, truth, 1 - truth)))
        found["brier"].append(2 * np.mean((p - truth) ** 2 + truth * (1 - truth)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def simulate(config: BaselineConfig, count: int, seed: int) -> tuple[dict[str, Interval], dict[str, float], float]:
    """Return the metrics with their intervals, the risk of the fold models, and n_scored / n_learning."""
    features, _, labels = draw(np.random.default_rng([seed, count]), count)
    dataset = Dataset("simulated", features, labels, tuple(f"x{i}" for i in range(NUM_FEATURES)), ("0", "1"))
    validation = CrossValidation(dataset, config)
    for epoch in range(1, config.task.epochs + 1):
        validation.train_epoch(epoch)
    validation.finish()
    fresh, truth, _ = draw(np.random.default_rng(10**6), NUM_FRESH)
    fold = validation.models[0].fold
    ratio = len(fold.scored) / len(fold.learning)
    return validation.measure().intervals(), risk(validation, fresh, truth), ratio


def coverage(config: BaselineConfig, count: int, simulations: int) -> list[str]:
    """Return one row for each metric and truth."""
    found = [simulate(config, count, seed) for seed in range(simulations)]
    folds, ratio = config.cross_validation.folds, found[0][2]
    factors = {
        "plain": 1.0,
        "k-fold": math.sqrt((2 * folds - 1) / (folds - 1)),
        "learned from": math.sqrt(1 + folds * ratio),
    }
    rows = []
    for name in METRICS:
        value, low, high = (
            np.array([getattr(f[0][name], part) for f in found], dtype=float) for part in ("value", "low", "high")
        )
        given = np.array([f[1][name] for f in found])
        for truth, against in (("given these fits", given), ("procedure", np.full(len(given), given.mean()))):
            held = [
                np.mean((value - factor * (value - low) <= against) & (against <= value + factor * (high - value)))
                for factor in factors.values()
            ]
            error, half_width = value - against, np.nanmean(high - low) / 2
            rows.append(
                f"{count:5} {name:>9} {truth:>17} {error.mean():+9.4f} {error.std() / (half_width / 1.96):6.2f} "
                + " ".join(f"{share:12.3f}" for share in held)
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 300, 600])
    parser.add_argument("overrides", nargs="*", help="as for scripts/baseline.py, such as task.model=mlp")
    arguments = parser.parse_args()
    defaults = ["task.epochs=40", "task.learning_rate=0.1", "cross_validation.repeats=1"]
    config = load("baseline", [*defaults, *arguments.overrides])
    print("    n    metric             truth     error      z        plain       k-fold learned from")
    for count in arguments.sizes:
        print("\n".join(coverage(config, count, arguments.simulations)), flush=True)


if __name__ == "__main__":
    main()
