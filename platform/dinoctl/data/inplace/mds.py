"""MosaicML Streaming's MDS: ``index.json`` beside shards whose samples are contiguous.

A shard: the number of samples n (uint32), n + 1 offsets (uint32), the columns once more as JSON, the samples. A
sample: the sizes (uint32) of its columns of variable size, then the columns in the order of ``index.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dinoctl.data.building import BadFile
from dinoctl.data.errors import DataError
from dinoctl.data.inplace.base import Found, whole
from dinoctl.data.inplace.columns import IMAGE_NAMES, choose, number
from dinoctl.data.inplace.window import Window

_IMAGES = {"jpeg", "png", "bytes"}
_BITS = (8, 16, 32, 64)
_INTEGERS = {"int": "<i8"} | {f"int{n}": f"<i{n // 8}" for n in _BITS} | {f"uint{n}": f"<u{n // 8}" for n in _BITS}
_TEXTS = {"str", "str_int"}


def shards_of(content: dict[str, Any], place: str) -> list[str]:
    """Names of the shard files. Raises `DataError` where they are compressed."""
    for shard in content["shards"]:
        if shard.get("format") != "mds":
            raise DataError(f"{place}: shards of format {shard.get('format')!r} cannot be indexed, only mds")
        if shard.get("compression"):
            raise DataError(
                f"{place}: its shards are compressed ({shard['compression']}), so images are no ranges of bytes; "
                "write the set again with compression=None, or pack the images"
            )
    return [str(shard["raw_data"]["basename"]) for shard in content["shards"]]


class Mds:
    """The columns of a set; all shards have the same."""

    def __init__(
        self, content: dict[str, Any], place: str, image: str | None, label: str | None, *, labels: bool
    ) -> None:
        shard = content["shards"][0]
        names, encodings = shard["column_names"], shard["column_encodings"]
        self._sizes: list[int | None] = shard["column_sizes"]
        kinds = dict(zip(names, encodings, strict=True))
        fit = [name for name in names if kinds[name] in _IMAGES]
        chosen = choose(image, fit, IMAGE_NAMES, kinds, f"{place}: image")
        if chosen is None:
            raise DataError(
                f"{place}: no column with the bytes of an image file ({_listed(kinds)}); jpeg, png and bytes are"
            )
        self._image = names.index(chosen)
        label_fit = [name for name in names if kinds[name] in _INTEGERS or kinds[name] in _TEXTS]
        named = choose(label, label_fit, ("label", "class", "cls"), kinds, f"{place}: label") if labels else None
        self._label = None if named is None else names.index(named)
        self._label_type = None if named is None else _INTEGERS.get(kinds[named])
        self._label_name = named or ""

    def samples(self, file: Window, path: str) -> Iterator[Found | BadFile]:
        """See `Layout.samples`."""
        count = int.from_bytes(whole(file, 0, 4, "the number of samples"), "little")
        table = whole(file, 4, 4 + 4 * (count + 1), "the table of samples")
        offsets = np.frombuffer(table, "<u4").tolist()
        stem = PurePosixPath(path).stem
        for i, (start, end) in enumerate(pairwise(offsets)):
            spans = self._spans(file, start, end)
            offset, length = spans[self._image]
            yield Found(f"{stem}-{i:06d}", offset, length, self._text(file, spans))

    def _spans(self, file: Window, start: int, end: int) -> list[tuple[int, int]]:
        variable = self._sizes.count(None)
        given = iter(np.frombuffer(whole(file, start, start + 4 * variable, "a sample"), "<u4").tolist())
        at, spans = start + 4 * variable, []
        for size in self._sizes:
            length = int(next(given) if size is None else size)
            spans.append((at, length))
            at += length
        if at != end or end > file.size:
            raise DataError(f"{file.place}: is cut off or damaged (a sample ends at byte {at}, not at {end})")
        return spans

    def _text(self, file: Window, spans: list[tuple[int, int]]) -> str | None:
        if self._label is None:
            return None
        offset, length = spans[self._label]
        return number(file.read(offset, offset + length), self._label_type, file.place, self._label_name)


def _listed(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in kinds.items())


def read_json(data: bytes, place: str) -> dict[str, Any]:
    """An ``index.json``; empty where it holds a list or the like, which no set has."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f"{place}: is no JSON ({error}); fetch it again") from error
    return content if isinstance(content, dict) else {}
