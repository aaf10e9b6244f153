"""``dataset.json``: what a packed dataset holds. Written last; a directory without it is no dataset.

    {"format": "dinoctl.dataset/v1", "hash": "...", "splits": {"train": {"samples": 1297, "bytes": 181580,
     "mean_bytes": 140.0, "index": "train/index.npy", "index_sha256": "...", "index_bytes": 41636,
     "index_sums_sha256": "...", "keys": "train/keys.parquet", "keys_sha256": "...",
     "shards": [{"path": "train/shard-000000.tar", "bytes": 2658304, "crc32c": 123}], "classes": ["0", ...]}}}

Shards that were indexed where they lie have a ``root``, the URI that their paths start from, and instead of a checksum
of the whole file the ``etag`` that the bucket gave it. ``hash`` is the SHA-256 of the rest as canonical JSON: equal
hashes mean equal bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dinoctl.data.errors import DataError, NotFoundError
from dinoctl.data.storage import Storage

FORMAT = "dinoctl.dataset/v1"
FILE = "dataset.json"


@dataclass(frozen=True)
class ShardInfo:
    """A file of samples: its key below the dataset (or the split's root), bytes, CRC-32C of the whole file.

    ``crc32c`` is None for a file that was indexed where it lies; on a bucket it has an ``etag``.
    """

    path: str
    bytes: int
    crc32c: int | None
    etag: str | None = None


@dataclass(frozen=True)
class SplitInfo:
    """A split. ``bytes`` counts image bytes, without tar headers. What is None is left out of the file."""

    samples: int
    bytes: int
    mean_bytes: float
    index: str
    index_sha256: str
    shards: list[ShardInfo]
    classes: list[str] | None
    index_bytes: int | None = None
    index_sums_sha256: str | None = None
    """Of the block sums in the index; None: an index of the former format, one Parquet file."""
    keys: str | None = None
    keys_sha256: str | None = None
    root: str | None = None
    """Where shards' paths start; None: in the dataset itself."""


@dataclass(frozen=True)
class Manifest:
    """The content of ``dataset.json``."""

    splits: dict[str, SplitInfo]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the content."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, "splits": {name: _plain(split) for name, split in self.splits.items()}}

    def write(self, storage: Storage) -> None:
        """Make the dataset exist."""
        storage.write(FILE, json.dumps({**self._content(), "hash": self.hash}, indent=1).encode())


def _plain(split: SplitInfo) -> dict[str, Any]:
    """A split as JSON has it. Fields that came later are left out where they are None, so old hashes stay."""
    shards = [_given(shard) for shard in split.shards]
    return {**_given(split), "classes": split.classes, "shards": shards}


def _given(value: SplitInfo | ShardInfo) -> dict[str, Any]:
    return {name: field for name, field in vars(value).items() if field is not None}


def canonical(value: Any) -> bytes:
    """JSON with one possible spelling: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read_manifest(storage: Storage) -> Manifest:
    """Read and verify ``dataset.json``.

    Raises:
        DataError: there is none, it has another format, or its hash does not fit.
    """
    place = f"{storage.uri}/{FILE}"
    try:
        content = json.loads(storage.read(FILE))
        manifest = _parse(content)
    except NotFoundError as error:
        raise DataError(f"{storage.uri}: no packed dataset there ({FILE} is missing); pack it first") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: is not a {FORMAT} manifest ({error}); pack the dataset again") from error
    if manifest.hash != content.get("hash"):
        raise DataError(f"{place}: was changed after packing (its hash does not fit); pack the dataset again")
    return manifest


def _parse(content: dict[str, Any]) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}")
    splits = {}
    for name, split in content["splits"].items():
        shards = [ShardInfo(**{"crc32c": None, **shard}) for shard in split["shards"]]
        splits[name] = SplitInfo(**{**split, "shards": shards})
    return Manifest(splits)
