"""Simulated documents and runs whose true metrics are known, as the tables of sums that an evaluation keeps."""

import numpy as np
import numpy.typing as npt

from nanolm.metrics import NUM_BINS, WIDTH, column

Floats = npt.NDArray[np.float64]

NLL, ENTROPY = 4.0, 4.02
CENTRES = (np.arange(NUM_BINS) + 0.5) / NUM_BINS


def lengths(generator: np.random.Generator, count: int, spread: float) -> Floats:
    """(count,) tokens of documents whose lengths are log-normal with this σ, 5,000 in the middle."""
    return np.maximum(50, np.round(np.exp(generator.normal(8.5, spread, count))))


def sums_of(
    generator: np.random.Generator,
    tokens: Floats,
    level: Floats,
    overconfidence: float,
    own: Floats | float = 0.0,
    luck: Floats | float = 0.0,
) -> Floats:
    """(U, WIDTH) sums of units of these lengths.

    Args:
        level: (U,) how hard each unit is, 0 on average, in standard deviations of what documents differ by.
        overconfidence: confidence above accuracy in every bin, relative to the confidence; 0 for a calibrated model.
        own: (U,) what one model finds harder than others.
        luck: (U,) how much more often than elsewhere a unit's tokens are right, at every confidence; 0 on average.
    """
    sums = np.zeros((len(tokens), WIDTH))
    noise = generator.normal(size=(4, len(tokens))) * np.sqrt(tokens)
    column(sums, "tokens")[:] = tokens
    column(sums, "bytes")[:] = np.round(tokens * (3.2 - 0.15 * level) + noise[0])
    column(sums, "nll")[:] = tokens * (NLL + 0.12 * level + own) + 3 * noise[1]
    column(sums, "entropy")[:] = tokens * (ENTROPY + 0.03 * level) + noise[2]
    column(sums, "nll_at_temperature")[:] = column(sums, "nll") - tokens * (0.002 + 0.004 * level) + 0.05 * noise[3]
    weights = np.exp(-4 * CENTRES)[None] * np.exp(-0.5 * level[:, None] * CENTRES)
    counts = generator.multinomial(tokens.astype(np.int64), weights / weights.sum(axis=1, keepdims=True))
    right = CENTRES * (1 - overconfidence - 0.5 * np.reshape(own, (-1, 1)))
    right = right + 1.5 * CENTRES * (1 - CENTRES) * np.reshape(luck, (-1, 1))  # never beyond 0 or 1, and 0 on average
    column(sums, "bin_count")[:] = counts
    column(sums, "bin_confidence")[:] = counts * CENTRES
    column(sums, "bin_correct")[:] = generator.binomial(counts, np.clip(right, 0, 1))
    column(sums, "confidence")[:] = column(sums, "bin_confidence").sum(axis=1)
    column(sums, "correct")[:] = column(sums, "bin_correct").sum(axis=1)
    column(sums, "brier")[:] = tokens * (1.02 - 0.02 * level) - 0.6 * column(sums, "correct")
    return sums


def documents(generator: np.random.Generator, count: int, spread: float, overconfidence: float) -> Floats:
    """(count, WIDTH) sums of independent documents; long ones are a little easier."""
    tokens = lengths(generator, count, spread)
    level = generator.gamma(4, 0.5, count) - 2.0 - 0.2 * (np.log(tokens) - 8.5)
    return sums_of(generator, tokens, level, overconfidence, luck=0.1 * generator.normal(size=count))


def text(generator: np.random.Generator, num_cells: int, correlation: float, overconfidence: float) -> Floats:
    """(num_cells, WIDTH) sums of neighbouring cells of 64 tokens of one text, whose level is an AR(1) process."""
    level = np.empty(num_cells)
    level[0] = generator.normal()
    shocks = generator.normal(size=num_cells) * np.sqrt(1 - correlation**2)
    for place in range(1, num_cells):
        level[place] = correlation * level[place - 1] + shocks[place]
    return sums_of(generator, np.full(num_cells, 64.0), 2 * level, overconfidence, luck=-0.2 * level)
