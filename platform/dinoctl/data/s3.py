"""Storage on an S3 bucket, through boto3: the fastest client that was measured.

Credentials come from the standard AWS chain, the endpoint from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile. An
object appears whole or not at all by the rules of S3: one PUT, or a multipart upload that is completed last and
aborted on error. What travels is checksummed (boto3's default, unless AWS_REQUEST_CHECKSUM_CALCULATION says not to).
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.reader.ranges import Ranges, S3Ranges
from dinoctl.data.s3_client import PATIENCE_S, client, code_of, persist
from dinoctl.data.storage import Entry, Storage

PART = 16 * 2**20
"""Bytes of a part of a multipart upload, at least. S3 allows 10,000 parts, so objects of up to 156 GiB."""

_UPLOADS = 4  # parts on the way at once: one connection rarely fills a network; this many are in memory a second time
_BATCH = 1000  # keys of one request to delete
_CHECK_S = 10.0  # a person waits
_WRITER = "dinoctl-writer"  # in an object's metadata: tells our own write from another's, when an answer got lost
_LOST_RACE = {"PreconditionFailed", "412"}
_BARE = {"301", "400", "403"}  # answers to HEAD have no body, so no reason

Result = TypeVar("Result")


class S3Storage(Storage):
    """Objects below ``s3://bucket/prefix``."""

    def __init__(self, bucket: str, prefix: str, patience_s: float = PATIENCE_S) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.patience_s = patience_s
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """See `Storage.read`."""
        if end is not None and end <= (start or 0):
            return b""
        last = "" if end is None else end - 1
        span = {} if start is None and end is None else {"Range": f"bytes={start or 0}-{last}"}

        def get() -> bytes:
            try:
                body: bytes = client().get_object(**self._at(key), **span)["Body"].read()
            except _client_error() as error:
                if code_of(error) == "InvalidRange":  # the object ends before ``start``
                    return b""
                raise
            return body

        return self._persist("read", key, get)

    def write_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """See `Storage.write_chunks`."""
        parts = _parts(chunks)
        first = list(islice(parts, 2))
        if len(first) < 2:
            body = first[0] if first else b""
            self._persist("write", key, lambda: client().put_object(**self._at(key), Body=body))
        else:
            self._multipart(key, _chain(first, parts))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """See `Storage.write_if_absent`."""
        mark = uuid.uuid4().hex
        tries: list[None] = []

        def put() -> bool:
            tries.append(None)
            try:
                client().put_object(**self._at(key), Body=data, IfNoneMatch="*", Metadata={_WRITER: mark})
            except _client_error() as error:
                if code_of(error) not in _LOST_RACE:
                    raise
                # An earlier try may have arrived although its answer did not.
                return len(tries) > 1 and self._head(key)["Metadata"].get(_WRITER) == mark
            return True

        return self._persist("write", key, put)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.entries`. S3 lists in key order."""
        root = f"{self.prefix}/" if self.prefix else ""
        for page in self._pages("list_objects_v2", root + prefix):
            for item in page.get("Contents", ()):
                yield Entry(item["Key"][len(root) :], item["Size"])

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        return int(self._persist("read", key, lambda: self._head(key))["ContentLength"])

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        self._persist("delete", key, lambda: client().delete_object(**self._at(key)))

    def delete_prefix(self, prefix: str) -> None:
        """See `Storage.delete_prefix`, a thousand keys a request."""
        keys = iter([{"Key": self._at(key)["Key"]} for key in self.list(prefix)])
        while batch := list(islice(keys, _BATCH)):
            wanted = {"Bucket": self.bucket, "Delete": {"Objects": batch, "Quiet": True}}
            done = self._persist("delete", prefix, lambda wanted=wanted: client().delete_objects(**wanted))  # type: ignore[misc]
            if failed := done.get("Errors"):
                raise StorageError(f"cannot delete {self.uri}/{prefix}: {failed[0].get('Message', failed[0])}")

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """None: an object is not a file."""
        return None

    def child(self, name: str) -> Storage:
        """See `Storage.child`."""
        return S3Storage(self.bucket, f"{self.prefix}/{name}".strip("/"), self.patience_s)

    def sweep(self) -> None:
        """See `Storage.sweep`: unfinished multipart uploads, which cost money until they are aborted."""
        root = f"{self.prefix}/" if self.prefix else ""
        for page in self._pages("list_multipart_uploads", root):
            for upload in page.get("Uploads", ()):
                self._abort({"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]})

    def ranges(self, sizes: Mapping[str, int]) -> Ranges:
        """See `Storage.ranges`."""
        return S3Ranges(self.uri, self.bucket, self.prefix, sizes)

    def check(self, *, write: bool) -> None:
        """See `Storage.check`. The probe also finds out servers that take a conditional write for a plain one."""
        hasty = S3Storage(self.bucket, self.prefix, min(self.patience_s, _CHECK_S))
        hasty._persist("list", "", lambda: client().list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1))
        if not write:
            return
        probe = f".dinoctl-check-{uuid.uuid4().hex}"
        conditional = [hasty.write_if_absent(probe, b"") for _ in range(2)]
        hasty.delete(probe)
        if conditional != [True, False]:
            raise StorageError(
                f"{self.uri}: the server ignores conditional writes (If-None-Match), which checkpoints rely on; "
                "use one that knows them"
            )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def _persist(self, action: str, key: str, request: Callable[[], Result]) -> Result:
        return persist(action, f"{self.uri}/{key}", request, self.patience_s)

    def _head(self, key: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = client().head_object(**self._at(key))
        except _client_error() as error:
            if code_of(error) in _BARE:
                client().get_object(**self._at(key), Range="bytes=0-0")  # fails likewise, and says why
            raise
        return answer

    def _pages(self, operation: str, prefix: str) -> Iterator[dict[str, Any]]:
        """All pages of a listing, each tried again by itself."""
        method: Callable[..., Any] | None = None
        following: dict[str, str] = {}
        while True:
            method, arguments = getattr(client(), operation), {"Bucket": self.bucket, "Prefix": prefix, **following}
            page = self._persist("list", "", lambda m=method, a=arguments: m(**a))  # type: ignore[misc]
            yield page
            if not page.get("IsTruncated"):
                return
            if operation == "list_objects_v2":
                following = {"ContinuationToken": page["NextContinuationToken"]}
            else:
                following = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _multipart(self, key: str, parts: Iterable[bytes]) -> None:
        """Parts a few at a time, completed last; nothing is left behind when one fails."""
        at, mark = self._at(key), uuid.uuid4().hex
        about = {"Metadata": {_WRITER: mark}, **_whole_checksum()}
        made = self._persist("write", key, lambda: client().create_multipart_upload(**at, **about))
        upload = {**at, "UploadId": made["UploadId"]}
        try:
            done = self._send(key, upload, parts)
            self._persist("write", key, lambda: self._complete(upload, done, key, mark))
        except BaseException:
            with suppress(StorageError):
                self._abort(upload)
            raise

    def _send(self, key: str, upload: dict[str, str], parts: Iterable[bytes]) -> list[dict[str, Any]]:
        def send(number: int, part: bytes) -> dict[str, Any]:
            answer = self._persist("write", key, lambda: client().upload_part(**upload, PartNumber=number, Body=part))
            sums = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer and _whole_checksum() else {}
            return {"PartNumber": number, "ETag": answer["ETag"], **sums}

        done: list[dict[str, Any]] = []
        waiting: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as pool:
            try:
                for number, part in enumerate(parts, 1):
                    waiting.append(pool.submit(send, number, part))
                    if len(waiting) == _UPLOADS:
                        done.append(waiting.popleft().result())
                done += [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # a part that arrives after the abort would stay
                raise
        return done

    def _complete(self, upload: dict[str, str], parts: list[dict[str, Any]], key: str, mark: str) -> None:
        try:
            client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except _client_error() as error:
            # An earlier try may have completed it although its answer did not arrive.
            if code_of(error) != "NoSuchUpload" or self._head(key)["Metadata"].get(_WRITER) != mark:
                raise

    def _abort(self, upload: dict[str, str]) -> None:
        with suppress(NotFoundError):
            self._persist("delete", upload["Key"], lambda: _abort(upload))


def _whole_checksum() -> dict[str, str]:
    """A checksum of the whole object, which readers verify; none where the environment says that servers lack them."""
    if client().meta.config.request_checksum_calculation == "when_required":
        return {}
    return {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}


def _abort(upload: dict[str, str]) -> None:
    try:
        client().abort_multipart_upload(**upload)
    except _client_error() as error:
        if code_of(error) != "NoSuchUpload":  # it is gone already
            raise


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError  # type: ignore[import-untyped, unused-ignore]

    kind: type[Exception] = ClientError
    return kind


def _parts(chunks: Iterable[bytes], part: int = PART) -> Iterator[bytes]:
    """The same bytes in pieces of at least ``part`` bytes; only the last one may be smaller."""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= part:
            yield pending[0] if len(pending) == 1 else b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def _chain(first: list[bytes], rest: Iterable[bytes]) -> Iterator[bytes]:
    yield from first
    yield from rest
