"""Seeds derived from seeds: independent random streams that are pure functions of a few integers."""

import numpy as np


def derive_seed(*keys: int) -> int:
    """Derive a 64-bit seed for the random stream named by non-negative integers, such as (seed, step).

    NumPy's SeedSequence mixes them so that neighbouring keys give unrelated streams (O'Neill, 2015).
    """
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])
