"""Plain tar shards as WebDataset reads them, with bytes that depend on the content alone.

Times, owners and modes are fixed. A sample is its image ``<key>.<suffix>`` and, when labelled, ``<key>.cls`` with the
number as text.
"""

from __future__ import annotations

import tarfile

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two empty blocks close an archive."""


def member(name: str, data: bytes) -> tuple[bytes, int]:
    """A tar member, padded to whole blocks, and the offset of ``data`` in it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")  # GNU: names of any length in any tar
    return header + data + bytes(-len(data) % BLOCK), len(header)


def sample(key: str, suffix: str, image: bytes, label: int | None) -> tuple[bytes, int]:
    """The members of a sample and the offset of the image bytes in them."""
    data, offset = member(f"{key}.{suffix}", image)
    if label is None:
        return data, offset
    return data + member(f"{key}.cls", str(label).encode())[0], offset
