"""What tells one version of a stored file from another: a bucket's ETag, a file's time of change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoctl.data.storage import Storage

if TYPE_CHECKING:
    from dinoctl.data.s3 import S3Storage


class Stored(NamedTuple):
    """A file or object as it is now."""

    key: str
    size: int
    etag: str | None
    """On a bucket."""
    changed_ns: int | None
    """Of a file: when it was changed, nanoseconds since 1970."""


def stored(storage: Storage, key: str) -> Stored:
    """One file or object. Raises `NotFoundError` when it is not there."""
    path = storage.local_path(key)
    if path is not None:
        size = storage.size(key)
        return Stored(key, size, None, path.stat().st_mtime_ns)
    return next(
        (found for found in listed(storage, key) if found.key == key), Stored(key, storage.size(key), None, None)
    )


def listed(storage: Storage, prefix: str = "") -> Iterator[Stored]:
    """All files or objects whose key starts with ``prefix``, sorted by key."""
    from dinoctl.data.local import LocalStorage

    if isinstance(storage, LocalStorage):
        for key, size in storage.entries(prefix):
            yield Stored(key, size, None, (storage.root / key).stat().st_mtime_ns)
    else:
        yield from _objects(storage, prefix)  # type: ignore[arg-type]  # there are two kinds of storage


def _objects(storage: S3Storage, prefix: str) -> Iterator[Stored]:
    root = f"{storage.prefix}/" if storage.prefix else ""
    following: dict[str, str] = {}
    while True:
        page = _page(storage, root + prefix, following)
        for item in page.get("Contents", ()):
            yield Stored(item["Key"][len(root) :], item["Size"], item["ETag"].strip('"'), None)
        if not page.get("IsTruncated"):
            return
        following = {"ContinuationToken": page["NextContinuationToken"]}


def _page(storage: S3Storage, prefix: str, following: dict[str, str]) -> dict[str, Any]:
    from dinoctl.data.s3_client import client, persist

    def ask() -> dict[str, Any]:
        page: dict[str, Any] = client().list_objects_v2(Bucket=storage.bucket, Prefix=prefix, **following)
        return page

    return persist("list", storage.uri, ask, storage.patience_s)
