"""boto3 clients, and what to do when a request to S3 fails: try again for a bounded time, or say in one line why not.

One client a process (boto3's clients are safe between threads, not between processes), found again by whoever opens a
storage. botocore's own retries are off: they know neither a body that breaks off nor a time limit over all tries.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, wait_random_exponential

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.spec.errors import redacted

PATIENCE_S = 120.0
"""Seconds over all tries of one request. A store that is away for longer ends the attempt; another one resumes."""

_CONNECT_S, _READ_S = 5, 30
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 8.0
_CONNECTIONS = 64

Result = TypeVar("Result")

_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
_AGAIN = {
    *(
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "InternalFailure",
        "RequestTimeout",
        "RequestTimeoutException",
    ),
    *("Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded"),
    *("OperationAborted", "ConditionalRequestConflict"),  # another writer is at the same key just now
    *("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"),  # damaged on the way
}
_DENIED = "access denied; check the credentials' permissions on this bucket"
_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to it"
_KEY = "the access key is unknown there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
_HELP = {
    "NoSuchBucket": "the bucket does not exist; create it or correct the URI",
    "InvalidBucketName": "that is no name of a bucket; correct the URI",
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "403": _DENIED,
    "InvalidAccessKeyId": _KEY,
    "XAdminUserNotFound": _KEY,  # versitygw's word for it
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; renew them and run again",
    "InvalidToken": "the session token is not valid; renew AWS_SESSION_TOKEN and run again",
    "RequestTimeTooSkewed": "this machine's clock is wrong; synchronise it and run again",
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NotImplemented": "the server lacks what is needed (conditional writes; checksums, unless "
    "AWS_REQUEST_CHECKSUM_CALCULATION=when_required is set); use another one",
    "SlowDown": "the server asks for fewer requests, and did so until patience ended; run again later",
}
# What decides which client is right. The values stay in this process and go into no message.
_ENVIRONMENT = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DINOCTL_S3_ADDRESSING"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
)
_clients: dict[tuple[str | None, ...], Any] = {}
_lock = threading.Lock()


def _forget_all() -> None:
    """In a child that was forked: the parent's sockets are not ours, and its lock may be held by nobody."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_forget_all)


def client() -> Any:
    """This process's client for the present environment."""
    key = tuple(map(os.environ.get, _ENVIRONMENT))
    with _lock:
        if key not in _clients:
            _clients[key] = _make()
        return _clients[key]


def renew() -> None:
    """Lets go of the client, so that the next one reads the credentials again."""
    with _lock:
        _clients.pop(tuple(map(os.environ.get, _ENVIRONMENT)), None)


def _make() -> Any:
    import boto3  # type: ignore[import-untyped, unused-ignore]
    from botocore.config import Config  # type: ignore[import-untyped, unused-ignore]

    logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found credentials, in every process
    session = boto3.session.Session()  # of its own: the default session is not safe between threads
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": _addressing(session)},
    )
    return session.client("s3", config=config)


def _addressing(session: Any) -> str:
    """As the environment or the AWS profile says; else by path at own servers, which rarely have a name per bucket."""
    profile: dict[str, Any] = session._session.get_scoped_config()
    own = profile.get("endpoint_url") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    settings = profile.get("s3")
    said = os.environ.get("DINOCTL_S3_ADDRESSING") or (settings or {}).get("addressing_style")
    return said or ("path" if own else "auto")


def persist(action: str, place: str, request: Callable[[], Result], patience_s: float = PATIENCE_S) -> Result:
    """The result of ``request``, tried again after failures that may pass.

    Raises:
        NotFoundError: there is no such object.
        StorageError: it failed for good: what was tried, and what to do.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped, unused-ignore]

    began = time.monotonic()
    renewed: list[bool] = []
    tries = Retrying(
        retry=partial(_worth_it, renewed),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        stop=lambda state: time.monotonic() + state.upcoming_sleep - began > patience_s,
        reraise=True,
    )
    try:
        return tries(request)
    except ClientError as error:
        raise translate(code_of(error), error, action, place) from error
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise StorageError(unreachable(error, action, place)) from error


def _worth_it(renewed: list[bool], state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    if error is not None and code_of(error) == "ExpiredToken" and not renewed:
        renewed.append(True)  # something may have written new ones since this process read them
        renew()
        return True
    return error is not None and transient(error)


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return code_of(error) in _AGAIN or status == 429 or (status >= 500 and status != 501)
    if isinstance(error, (boto.SSLError, boto.ProxyConnectionError)):
        return False
    broken = (boto.HTTPClientError, boto.IncompleteReadError, boto.ChecksumError, boto.FlexibleChecksumError)
    return isinstance(error, broken)


def translate(code: str, error: BaseException, action: str, place: str) -> StorageError:
    """Our error for an answer of the server."""
    if code in _NOT_FOUND:
        return NotFoundError(f"cannot {action} {place}: there is no such object")
    return StorageError(f"cannot {action} {place}: {_HELP.get(code) or redacted(error)}")


def code_of(error: BaseException) -> str:
    """The server's word for what is wrong, empty if it is not the server that failed."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def unreachable(error: BaseException, action: str, place: str) -> str:
    """What to say of a request that got no answer."""
    name = type(error).__name__
    if re.search("Credential|Token|SSO|Profile", name):
        return f"cannot {action} {place}: no usable credentials ({redacted(error)}); set AWS_PROFILE or the AWS_* keys"
    if name == "ParamValidationError":
        return f"cannot {action} {place}: {redacted(error)}; correct the URI"
    return f"cannot {action} {place}: {redacted(error)}; check the network and AWS_ENDPOINT_URL"
