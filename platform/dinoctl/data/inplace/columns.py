"""Which column of a foreign set holds images and which one labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dinoctl.data.errors import DataError

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")


def choose(
    asked: str | None, fit: Sequence[str], usual: Sequence[str], known: Mapping[str, str], what: str
) -> str | None:
    """The column that was asked for, else the one with a usual name, else the only one for images; None: none.

    Raises:
        DataError: the one that was asked for is not there or does not fit, or several could be meant.
    """
    have = ", ".join(f"{name} ({kind})" for name, kind in known.items())
    if asked is not None:
        if asked not in fit:
            raise DataError(f"{what} column {asked!r} is not there or of another kind; there are {have}")
        return asked
    for name in usual:
        if name in fit:
            return name
    if usual is not IMAGE_NAMES or not fit:
        return None
    if len(fit) > 1:
        raise DataError(f"{what} column: several could be meant ({', '.join(fit)}); say which with --image-key")
    return fit[0]


def number(data: bytes, kind: str | None, place: str, name: str) -> str:
    """A label as text, from an integer of a NumPy type or from text; ``name`` is its column, ``place`` the shard.

    Raises:
        DataError: an integer of its type has another number of bytes.
    """
    if kind is None:
        return data.decode("utf-8", "replace").strip()
    size = np.dtype(kind).itemsize
    if len(data) != size:
        raise DataError(
            f"{place}: column {name!r} has a value of {len(data)} bytes, and its type has {size}; write the set again, "
            "name another column with --label-key, or leave labels out with --no-labels"
        )
    return str(int(np.frombuffer(data, kind)[0]))
