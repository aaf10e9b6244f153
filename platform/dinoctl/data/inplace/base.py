"""What a format of existing shards has to tell: which samples a shard holds, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from dinoctl.data.building import BadFile
from dinoctl.data.inplace.window import Window

SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})


class Found(NamedTuple):
    """A sample in a shard: ``length`` bytes of an image file from ``offset`` on."""

    key: str
    offset: int
    length: int
    label: str | None
    """Number or name of its class, as text."""


class Shard(NamedTuple):
    """A shard that is there: its path below the source, and what tells it from another version of itself."""

    path: str
    size: int
    etag: str | None
    changed_ns: int | None
    split: str
    """Where it belongs unless the user says otherwise."""


class Layout(Protocol):
    """How shards of one set are read. Picklable and small: it travels to child processes."""

    def samples(self, file: Window, path: str) -> Iterator[Found | BadFile]:
        """The samples of the shard at ``path``, in the order of their bytes.

        Raises:
            DataError: the shard is damaged, so that nobody knows what is missing.
        """
        ...


def whole(file: Window, start: int, end: int, what: str) -> bytes:
    """Bytes [start, end), all of them. Raises `DataError` where the shard ends before."""
    from dinoctl.data.errors import DataError

    if not 0 <= start <= end <= file.size:
        raise DataError(f"{file.place}: is cut off or damaged ({what} would end at byte {end} of {file.size})")
    return file.read(start, end)
