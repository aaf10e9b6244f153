"""Storage on an S3 bucket, through boto3: the fastest client that was measured, with thread-safe connections.

Credentials come from the standard AWS chain, the endpoint from AWS_ENDPOINT_URL. An object appears whole or not at
all by the rules of S3: one PUT, or a multipart upload that is completed last and aborted on error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.storage import Entry, Storage

PART = 32 * 2**20
"""Bytes of a part of a multipart upload. S3 allows 10,000 parts, so objects of up to 312 GiB."""

_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
_LOST_RACE = {"PreconditionFailed", "412"}
_HELP = {
    "NoSuchBucket": "the bucket does not exist; create it or correct the URI",
    "AccessDenied": "access denied; check the credentials' permissions on this bucket",
    "403": "access denied; check the credentials' permissions on this bucket",
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them and run again",
    "RequestTimeTooSkewed": "this machine's clock is wrong; synchronise it and run again",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION to it",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION to it",
    "InvalidRange": "the object is shorter than expected; it changed since it was packed",
}


class S3Storage(Storage):
    """Objects below ``s3://bucket/prefix``."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str, str]]:
        # A client holds sockets and locks: whoever receives the storage opens its own.
        return S3Storage, (self.bucket, self.prefix)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """See `Storage.read`."""
        if end is not None and end <= (start or 0):
            return b""
        last = "" if end is None else end - 1
        span = {} if start is None and end is None else {"Range": f"bytes={start or 0}-{last}"}
        with self._explained("read", key):
            body: bytes = self._client.get_object(**self._at(key), **span)["Body"].read()
            return body

    def write_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        """See `Storage.write_chunks`."""
        parts = _parts(chunks)
        first = next(parts, b"")
        second = next(parts, None)
        with self._explained("write", key):
            if second is None:
                self._client.put_object(**self._at(key), Body=first)
            else:
                self._multipart(key, _chain(first, second, parts))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """See `Storage.write_if_absent`."""
        with self._explained("write", key):
            try:
                self._client.put_object(**self._at(key), Body=data, IfNoneMatch="*")
            except _client_error() as error:
                if _code(error) in _LOST_RACE:
                    return False
                raise
        return True

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.entries`. S3 lists in key order."""
        root = f"{self.prefix}/" if self.prefix else ""
        with self._explained("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=root + prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield Entry(item["Key"][len(root) :], item["Size"])

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        with self._explained("read", key):
            return int(self._client.head_object(**self._at(key))["ContentLength"])

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with self._explained("delete", key):
            self._client.delete_object(**self._at(key))

    def delete_prefix(self, prefix: str) -> None:
        """See `Storage.delete_prefix`, a thousand keys a request."""
        keys = [{"Key": self._at(key)["Key"]} for key in self.list(prefix)]
        with self._explained("delete", prefix):
            for at in range(0, len(keys), 1000):
                batch = {"Objects": keys[at : at + 1000], "Quiet": True}
                failed = self._client.delete_objects(Bucket=self.bucket, Delete=batch).get("Errors", [])
                if failed:
                    raise StorageError(f"cannot delete {self.uri}/{prefix}: {failed[0].get('Message', failed[0])}")

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002
        """None: an object is not a file."""
        return None

    def child(self, name: str) -> Storage:
        """See `Storage.child`."""
        return S3Storage(self.bucket, f"{self.prefix}/{name}".strip("/"))

    def sweep(self) -> None:
        """See `Storage.sweep`: unfinished multipart uploads, which cost money until they are aborted."""
        with self._explained("list", ""):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/".lstrip("/")):
                for upload in page.get("Uploads", ()):
                    at = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._client.abort_multipart_upload(**at)

    @cached_property
    def _client(self) -> Any:
        import boto3  # type: ignore[import-untyped, unused-ignore]
        from botocore.config import Config  # type: ignore[import-untyped, unused-ignore]

        custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        config = Config(
            retries={"mode": "standard", "max_attempts": 6},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=64,
            s3={"addressing_style": "path" if custom else "auto"},  # own servers rarely have a name per bucket
        )
        # A session of its own: the default session is not safe to use from several threads.
        return boto3.session.Session().client("s3", config=config)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self.prefix}/{key}".lstrip("/")}

    def _multipart(self, key: str, parts: Iterable[bytes]) -> None:
        upload = {**self._at(key), "UploadId": self._client.create_multipart_upload(**self._at(key))["UploadId"]}
        try:
            done = [
                {"PartNumber": i, "ETag": self._client.upload_part(**upload, PartNumber=i, Body=part)["ETag"]}
                for i, part in enumerate(parts, 1)
            ]
        except BaseException:
            self._client.abort_multipart_upload(**upload)
            raise
        self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})

    @contextmanager
    def _explained(self, action: str, key: str) -> Iterator[None]:
        """Turns what boto3 raises into our errors."""
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped, unused-ignore]

        place = f"{self.uri}/{key}"
        try:
            yield
        except _client_error() as error:
            raise _translate(_code(error), error, action, place) from error
        except BotoCoreError as error:
            raise StorageError(_unreachable(error, action, place)) from error


def _translate(code: str, error: Exception, action: str, place: str) -> StorageError:
    if code in _NOT_FOUND:
        return NotFoundError(f"cannot {action} {place}: there is no such object")
    return StorageError(f"cannot {action} {place}: {_HELP.get(code, str(error))}")


def _unreachable(error: Exception, action: str, place: str) -> str:
    if "Credential" in type(error).__name__:
        return f"cannot {action} {place}: no usable credentials ({error}); set AWS_PROFILE or the AWS_* keys"
    return f"cannot {action} {place}: {error}; check the network and AWS_ENDPOINT_URL"


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    kind: type[Exception] = ClientError
    return kind


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _parts(chunks: Iterable[bytes], part: int = PART) -> Iterator[bytes]:
    """The same bytes in pieces of at least ``part`` bytes; only the last one may be smaller."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        if len(pending) >= part:
            yield bytes(pending)
            pending = bytearray()
    if pending:
        yield bytes(pending)


def _chain(first: bytes, second: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest
