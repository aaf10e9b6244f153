"""A keyed permutation of {0, ..., n - 1} in O(1) memory: a Feistel network with cycle walking, vectorised.

A Feistel network permutes 2^b numbers whatever its round function is; numbers that land at n or above go through it
again until they are below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). With b chosen as
small as possible this takes less than two passes on average.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dinoctl.data import keyed

Ids = NDArray[np.int64]
Keys = NDArray[np.uint64]
ROUNDS = 8
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # splitmix64


@lru_cache(maxsize=1024)
def round_keys(seed: int, purpose: str, *numbers: int) -> Keys:
    """The keys of one permutation, named as in `keyed`."""
    return keyed.words(seed, purpose, *numbers, count=ROUNDS)


def keys_of(seed: int, purpose: str, numbers: Ids) -> Keys:
    """Keys of a permutation for each of ``numbers``: (rounds, numbers), or (rounds, 1) when they are all equal."""
    if numbers.size and (numbers == numbers[0]).all():
        return round_keys(seed, purpose, int(numbers[0]))[:, None]
    unique, place = np.unique(numbers, return_inverse=True)
    keys = np.stack([round_keys(seed, purpose, int(number)) for number in unique], axis=1)
    return keys[:, place]


def permute(ids: Ids, size: int, keys: Keys) -> Ids:
    """Image of ``ids`` (shape (n,), values in [0, size)) under a permutation of ``size`` numbers.

    ``keys`` are those of one permutation, shape (rounds,), or of one for each id, as `keys_of` gives them.
    """
    bits = max(2, (size - 1).bit_length())
    keys = keys.reshape(ROUNDS, -1)
    values = _pass(ids.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _pass(values[outside], bits, keys if keys.shape[1] == 1 else keys[:, outside])
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _pass(values: NDArray[np.uint64], bits: int, keys: Keys) -> NDArray[np.uint64]:
    """One application of the network to ``bits``-bit numbers. The halves may differ by a bit."""
    low = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << int(low)) - 1), np.uint64((1 << (bits - int(low))) - 1)
    left, right = values >> low, values & low_mask
    for i in range(0, ROUNDS, 2):
        left = left ^ (_mix(right, keys[i]) & high_mask)
        right = right ^ (_mix(left, keys[i + 1]) & low_mask)
    return (left << low) | right


def _mix(values: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (values + key) * _MULTIPLIERS[0]
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MULTIPLIERS[1]
    mixed ^= mixed >> np.uint64(32)
    return mixed
