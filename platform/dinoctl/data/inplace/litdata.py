"""LitData: ``index.json`` beside chunks. Two forms have contiguous image bytes, and both are read.

Leaves: the number of samples n (uint32), n + 1 offsets (uint32), the samples; each is the sizes (uint32) of its leaves,
then the leaves. Arrow: samples that are plain dictionaries are an Arrow file at the end of the chunk, before its length
(uint32) and eight bytes of magic; image bytes lie in the data buffer of a binary column.
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
from dinoctl.data.inplace.base import SUFFIXES, Found, whole
from dinoctl.data.inplace.columns import IMAGE_NAMES, choose, number
from dinoctl.data.inplace.window import Window

_IMAGES = {"jpeg", "image", "bytes", *SUFFIXES}
_LABELS = {"int": "<i8", "str": None}
_ARROW_MAGIC = b"LDARW01\0"


def shards_of(content: dict[str, Any], place: str) -> list[str]:
    """Names of the chunk files. Raises `DataError` where they are compressed or encrypted."""
    config = content["config"]
    for what in ("compression", "compression_level", "encryption"):
        if config.get(what):
            raise DataError(
                f"{place}: its chunks have {what} ({config[what]}), so images are no ranges of bytes; "
                "write the set again without, or pack the images"
            )
    return [str(chunk["filename"]) for chunk in content["chunks"]]


class LitData:
    """The leaves of a set; all chunks have the same."""

    def __init__(
        self, content: dict[str, Any], place: str, image: str | None, label: str | None, *, labels: bool
    ) -> None:
        config = content["config"]
        kinds = dict(zip(_names(config), map(str, config["data_format"] or ()), strict=False))
        fit = [name for name, kind in kinds.items() if kind.split(":")[0] in _IMAGES]
        chosen = choose(image, fit, IMAGE_NAMES, kinds, f"{place}: image")
        if chosen is None:
            raise DataError(f"{place}: nothing in a sample is the bytes of an image file ({kinds}); jpeg and bytes are")
        fit = [name for name, kind in kinds.items() if kind in _LABELS]
        named = choose(label, fit, ("label", "class", "cls", "target"), kinds, f"{place}: label") if labels else None
        self._names, self._image, self._label = list(kinds), chosen, named
        self._label_type = _LABELS[kinds[named]] if named else None

    def samples(self, file: Window, path: str) -> Iterator[Found | BadFile]:
        """See `Layout.samples`."""
        stem = PurePosixPath(path).stem
        tail = file.read(max(file.size - 12, 0), file.size)
        found = self._rows(file, tail) if tail[4:] == _ARROW_MAGIC else self._leaves(file)
        for i, (offset, size, label) in enumerate(found):
            yield Found(f"{stem}-{i:06d}", offset, size, label)

    def _leaves(self, file: Window) -> Iterator[tuple[int, int, str | None]]:
        count = int.from_bytes(whole(file, 0, 4, "the number of samples"), "little")
        offsets = np.frombuffer(whole(file, 4, 4 + 4 * (count + 1), "the table of samples"), "<u4").tolist()
        head = 4 * len(self._names)
        for start, end in pairwise(offsets):
            sizes = np.frombuffer(whole(file, start, start + head, "a sample"), "<u4").tolist()
            if start + head + sum(sizes) != end or end > file.size:
                raise DataError(f"{file.place}: is cut off or damaged (the sample at byte {start} is of another size)")
            ends = np.cumsum([start + head, *sizes]).tolist()
            spans = dict(zip(self._names, pairwise(ends), strict=True))
            first, last = spans[self._image]
            yield first, last - first, self._text(file, spans)

    def _text(self, file: Window, spans: dict[str, tuple[int, int]]) -> str | None:
        if not self._label:
            return None
        return number(file.read(*spans[self._label]), self._label_type, file.place, self._label)

    def _rows(self, file: Window, tail: bytes) -> Iterator[tuple[int, int, str | None]]:
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

        end = file.size - len(tail)
        start = end - int.from_bytes(tail[:4], "little")
        data = pa.py_buffer(whole(file, start, end, "its Arrow data"))
        try:
            with pa.ipc.open_file(data) as reader:
                for number in range(reader.num_record_batches):
                    yield from self._batch(reader.get_batch(number), data, start, file.place)
        except pa.ArrowInvalid as error:
            raise DataError(f"{file.place}: is cut off or damaged ({error})") from error

    def _batch(self, batch: Any, data: Any, start: int, place: str) -> Iterator[tuple[int, int, str | None]]:
        images = batch.column(self._image)
        labels = batch.column(self._label).to_pylist() if self._label else [None] * len(images)
        _, positions, content = images.buffers()
        at = (content.address if content else data.address) - data.address
        if not 0 <= at <= data.size:
            raise DataError(f"{place}: its Arrow data are compressed; write the set again without, or pack the images")
        width = "<i8" if str(images.type).startswith("large_") else "<i4"
        ends = np.frombuffer(positions, width)[images.offset : images.offset + len(images) + 1].tolist()
        for first, last, label in zip(ends[:-1], ends[1:], labels, strict=True):
            yield start + at + first, last - first, None if label is None else str(label)


def _names(config: dict[str, Any]) -> list[str]:
    """Names of the leaves in their order; numbers where samples are no flat dictionaries."""
    count = len(config["data_format"] or ())
    try:
        spec = json.loads(config["data_spec"])[1]
        names = json.loads(spec["context"]) if spec["type"] == "builtins.dict" else []
    except (TypeError, ValueError, KeyError, IndexError):
        names = []
    flat = len(names) == count and all(isinstance(name, str) for name in names)
    return names if flat else [str(i) for i in range(count)]
