"""``builtin://digits``: the 1,797 scanned handwritten digits that come with scikit-learn, as 8 x 8 grey PNG files.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (test part). Values 0 to 16 become
0 to 255. The files are written without compression, because compressed bytes differ between versions of zlib and the
dataset's hash must not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dinoctl.data.sources.base import SourceItem


class Digits:
    """All digits in scikit-learn's order, labelled 0 to 9."""

    sequential = False
    threads = 1

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]

        bunch = load_digits()
        pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        self.classes: list[str] | None = [str(digit) for digit in range(10)]
        self._files = [png(image) for image in pixels]
        self._labels = [int(label) for label in bunch.target]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[SourceItem]:
        for i, (data, label) in enumerate(zip(self._files, self._labels, strict=True)):
            yield SourceItem(f"{i:04d}", "png", label, len(data), f"builtin://digits/{i:04d}.png", self)

    def read(self, item: SourceItem) -> bytes:
        """Bytes of an item."""
        return self._files[int(item.key)]


def png(image: NDArray[np.uint8]) -> bytes:
    """An 8-bit grey image (height, width) as an uncompressed PNG file: the same bytes everywhere."""
    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
