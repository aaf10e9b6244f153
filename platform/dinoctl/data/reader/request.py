"""One GET of a range with a third of the processor time that `get_object` takes (0.9 ms of 2.6, 1.7 MB at a time).

botocore signs the request and its connections carry it, so credentials, certificates and proxies are the client's. What
is left out are parameter checks, endpoint rules and parsing of answers. Anything but the wanted bytes is told as
`get_object` would tell it; a refusal that has a reason in it is `get_object`'s own, which also knows how to find a
bucket of another region.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dinoctl.data.reader.blocks import Blocks, Body
from dinoctl.data.s3_client import client


class Answer(NamedTuple):
    """The bytes, and what the server says of the object that they are a part of."""

    body: Body
    etag: str | None
    size: int | None


class RangeRequest:
    """Asks for ranges of objects of one bucket. Safe to use from several threads."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._blocks = Blocks()
        self._roots: dict[int, str] = {}  # of clients: where the bucket is
        self._direct = True

    def get(self, key: str, start: int, end: int, etag: str | None) -> Answer:
        """Bytes [start, end) of an object; with ``etag``, of that state of it alone.

        Raises:
            ClientError, BotoCoreError: as `get_object`.
        """
        fields = {"Range": f"bytes={start}-{end - 1}", **({"If-Match": etag} if etag else {})}
        s3 = client()
        if self._direct:
            answer = self._send(s3, key, fields)
            if answer is not None:
                return answer
        match = {"IfMatch": etag} if etag else {}
        said = s3.get_object(Bucket=self._bucket, Key=key, Range=fields["Range"], **match)
        self._direct = False  # it knows better where the bucket is
        body = Body(self._blocks)
        body.fill(said["Body"].readinto)
        return Answer(body, said.get("ETag"), _size(said.get("ContentRange")))

    def _send(self, s3: Any, key: str, fields: dict[str, str]) -> Answer | None:
        """None where the server refused and `get_object` is to say why, or to find the way."""
        from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped, unused-ignore]
        from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped, unused-ignore]
        from botocore.utils import percent_encode  # type: ignore[import-untyped, unused-ignore]

        credentials = s3._request_signer._credentials
        if credentials is None:
            return None
        url = self._root(s3) + percent_encode(key, safe="/~")
        request = AWSRequest(method="GET", url=url, headers=fields)
        request.context["client_config"] = s3.meta.config
        S3SigV4Auth(credentials.get_frozen_credentials(), "s3", s3.meta.region_name).add_auth(request)
        prepared = request.prepare()
        prepared.stream_output = True
        answer = s3._endpoint.http_session.send(prepared)
        if answer.status_code in (200, 206):
            return Answer(self._body(answer), answer.headers.get("ETag"), _size(answer.headers.get("Content-Range")))
        reason = _reason(answer)
        if answer.status_code in (412, 416, 429) or answer.status_code >= 500:
            raise _client_error(answer.status_code, reason)
        return None

    def _body(self, answer: Any) -> Body:
        """All of it; an answer that breaks off is an error that may pass."""
        from botocore.exceptions import (  # type: ignore[import-untyped, unused-ignore]
            IncompleteReadError,
            ResponseStreamingError,
        )
        from urllib3.exceptions import HTTPError

        body = Body(self._blocks)
        try:
            body.fill(answer.raw._fp.readinto)
            answer.raw.release_conn()
        except (HTTPError, OSError) as error:
            raise ResponseStreamingError(error=error) from error
        length = answer.headers.get("Content-Length")
        if length is not None and int(length) != body.size:
            raise IncompleteReadError(actual_bytes=body.size, expected_bytes=int(length))
        return body

    def _root(self, s3: Any) -> str:
        """URL of the bucket, by the client's own rules: they are too slow to be asked each time."""
        root = self._roots.get(id(s3))
        if root is None:
            url = s3.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "-"})
            root = self._roots[id(s3)] = url.partition("?")[0].removesuffix("-")
        return root


def _reason(answer: Any) -> bytes:
    """What the server says of a refusal."""
    from botocore.exceptions import ResponseStreamingError  # type: ignore[import-untyped, unused-ignore]
    from urllib3.exceptions import HTTPError

    try:
        reason: bytes = answer.raw.read()
    except (HTTPError, OSError) as error:
        raise ResponseStreamingError(error=error) from error
    return reason


def _client_error(status: int, body: bytes) -> Exception:
    from botocore.exceptions import ClientError  # type: ignore[import-untyped, unused-ignore]

    text = body.decode(errors="replace")
    said = {name: found[1] if (found := re.search(f"<{name}>([^<]*)<", text)) else "" for name in ("Code", "Message")}
    parsed: Mapping[str, Any] = {
        "Error": {"Code": said["Code"] or str(status), "Message": said["Message"]},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    made: Exception = ClientError(parsed, "GetObject")
    return made


def _size(content_range: str | None) -> int | None:
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None
