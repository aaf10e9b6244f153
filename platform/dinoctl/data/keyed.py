"""Random numbers that depend on what they are for, never on who draws them.

A stream is named by (seed, purpose, numbers): for example ``rng(seed, "augment", epoch, sample_id)`` or
``rng(seed, "masks", step)``. The name is hashed with BLAKE2b, the hash keys a Philox counter generator. Rank, worker
and call order never enter, so step t draws the same numbers at any world size and after any restart.
"""

import struct
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def digest(seed: int, purpose: str, *numbers: int, size: int = 16) -> bytes:
    """``size`` bytes (at most 64) that depend on every argument. Numbers are signed 64-bit."""
    state = blake2b(_prefix(seed, purpose), digest_size=size)
    state.update(struct.pack(f"<{len(numbers)}q", *numbers))
    return state.digest()


@lru_cache(maxsize=256)
def _prefix(seed: int, purpose: str) -> bytes:
    # The length goes first: no purpose can be mistaken for another one followed by numbers.
    text = purpose.encode()
    return struct.pack("<qI", seed, len(text)) + text


def rng(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator named by its arguments; the same name gives the same stream, on every machine."""
    key = np.frombuffer(digest(seed, purpose, *numbers), dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def words(seed: int, purpose: str, *numbers: int, count: int = 8) -> NDArray[np.uint64]:
    """``count`` (at most 8) 64-bit words named by the arguments, shape (count,)."""
    data = digest(seed, purpose, *numbers, size=8 * count)
    return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def text_digest(seed: int, purpose: str, text: str) -> bytes:
    """16 bytes that depend on a name; sorting by them is a keyed shuffle."""
    return blake2b(_prefix(seed, purpose) + text.encode("utf-8", "surrogateescape"), digest_size=16).digest()
