"""Byte ranges of a dataset's shards on S3, each a single try, from shards that are still those that were packed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from dinoctl.data.errors import ChangedError, StorageError
from dinoctl.data.reader.blocks import Body
from dinoctl.data.reader.request import Answer, RangeRequest
from dinoctl.data.s3_client import code_of, renew, transient, translate, unreachable

_RENEW_S = 5.0
_CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}


class Ranges(Protocol):
    """Where pieces come from. Safe to use from several threads."""

    def get(self, path: str, start: int, end: int) -> Body:
        """Bytes [start, end) of a shard, asked for once.

        Raises:
            ChangedError: the shard is not the one that was packed.
            Exception: whatever the client says; ``explain`` and ``may_pass`` know what it means.
        """
        ...

    def may_pass(self, error: BaseException, *, first: bool) -> bool:
        """Whether the same request may succeed a moment later. ``first``: this piece failed for the first time."""
        ...

    def slow_down(self, error: BaseException) -> bool:
        """Whether the server asks for fewer requests."""
        ...

    def explain(self, error: Exception, path: str) -> Exception:
        """Our error, for a failure that did not pass; an exception that is no failure to read stays as it is."""
        ...


class S3Ranges:
    """Shards below ``uri``. The first answer's ETag of a shard is demanded of all later ones (If-Match)."""

    def __init__(self, uri: str, bucket: str, prefix: str, sizes: Mapping[str, int]) -> None:
        self._uri, self._prefix, self._sizes = uri, prefix, sizes
        self._request = RangeRequest(bucket)
        self._etags: dict[str, str] = {}
        self._renewed = -_RENEW_S

    def get(self, path: str, start: int, end: int) -> Body:
        """See `Ranges.get`."""
        try:
            answer = self._request.get(f"{self._prefix}/{path}".lstrip("/"), start, end, self._etags.get(path))
        except Exception as error:
            if code_of(error) in _CHANGED:
                raise self._changed(path) from error
            raise
        if not self._same(path, answer):
            raise self._changed(path)
        return answer.body

    def may_pass(self, error: BaseException, *, first: bool) -> bool:
        """See `Ranges.may_pass`."""
        if code_of(error) == "ExpiredToken" and first:
            self._renew()
            return True
        return transient(error)

    def slow_down(self, error: BaseException) -> bool:
        """See `Ranges.slow_down`."""
        status = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in (429, 503)

    def explain(self, error: Exception, path: str) -> Exception:
        """See `Ranges.explain`."""
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped, unused-ignore]

        place = f"{self._uri}/{path}"
        if isinstance(error, ClientError):
            said = translate(code_of(error), error, "read", place)
        elif isinstance(error, BotoCoreError | ValueError):
            said = StorageError(unreachable(error, "read", place))
        else:
            return error
        said.__cause__ = error
        return said

    def _renew(self) -> None:
        """Something may have written new credentials since this process read them. Once for all pieces that failed."""
        now = time.monotonic()
        if now - self._renewed > _RENEW_S:
            self._renewed = now
            renew()

    def _same(self, path: str, answer: Answer) -> bool:
        if answer.size is not None and answer.size != self._sizes[path]:
            return False
        return answer.etag is None or self._etags.setdefault(path, answer.etag) == answer.etag

    def _changed(self, path: str) -> ChangedError:
        return ChangedError(
            f"{self._uri}/{path}: was changed while it was in use; put the packed shard back, or pack the dataset "
            "again elsewhere and start another job on it"
        )
