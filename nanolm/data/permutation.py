"""Keyed permutations and keyed hashes of integers: shuffles that need no memory and no state.

The permutation is a Feistel network over Z_a x Z_b with a*b just above its size (FE2 of Bellare, Ristenpart,
Rogaway and Stegers, "Format-Preserving Encryption", SAC 2009): alternately, one half is shifted by a keyed hash of
the other, which is a bijection whatever the hash. The few values that fall outside the size are sent through the
network again until they land inside (cycle walking), which keeps it a bijection.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np

ROUNDS = 8
BLOCK = 1 << 16


def _round_keys(key: str, count: int) -> list[np.uint64]:
    digest = hashlib.shake_256(key.encode()).digest(8 * count)
    return list(np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A keyed hash of uint64 values: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Permutation:
    """A bijection of ``range(size)`` chosen by a key, the same on every machine.

    Args:
        size: how many integers are permuted, at least 1 and below 2**62.
        key: any text; another text gives another permutation.
    """

    def __init__(self, size: int, key: str):
        assert 1 <= size < 1 << 62
        self.size = size
        rows = math.isqrt(size - 1) + 1
        self._moduli = np.uint64(rows), np.uint64(-(-size // rows))
        self._keys = _round_keys(key, ROUNDS)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Where each of the positions (any shape, integers in [0, size)) goes, as int64."""
        values = np.asarray(positions, dtype=np.uint64)
        shape, values = values.shape, values.reshape(-1)
        values = self._network(values)
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside])
        return values.reshape(shape).astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        """One pass over Z_a x Z_b; the pair (left, right) stands for left * b + right."""
        a, b = self._moduli
        left, right = values // b, values % b
        for number, key in enumerate(self._keys):
            if number % 2 == 0:
                left = np.remainder(left + np.remainder(_mix(right, key), a), a, dtype=np.uint64)
            else:
                right = np.remainder(right + np.remainder(_mix(left, key), b), b, dtype=np.uint64)
        result: np.ndarray = left * b + right
        return result


def keyed_integer(key: str, below: int) -> int:
    """An integer in [0, below) that depends on the key alone."""
    return int.from_bytes(hashlib.shake_256(key.encode()).digest(16), "little") % below


def ranks(size: int, key: str) -> Iterator[int]:
    """The permutation of 0, 1, 2, … in order, computed by the block."""
    permutation = Permutation(size, key) if size else None
    for start in range(0, size, BLOCK):
        assert permutation is not None
        yield from permutation(np.arange(start, min(start + BLOCK, size))).tolist()


def uniforms(key: str) -> Iterator[float]:
    """An endless sequence of numbers in [0, 1), one for each of 0, 1, 2, …, computed by the block."""
    (round_key,) = _round_keys(key, 1)
    start = 0
    while True:
        values = _mix(np.arange(start, start + BLOCK, dtype=np.uint64), round_key)
        yield from ((values >> np.uint64(11)) / np.float64(1 << 53)).tolist()
        start += BLOCK
