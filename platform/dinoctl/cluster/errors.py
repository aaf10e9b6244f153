"""What the API server refuses, and that it can't be reached: one class a reaction, one line each."""

import json
from typing import Any

from dinoctl.spec.errors import EnvironmentProblem


class ApiError(EnvironmentProblem):
    """A request that failed. ``status`` is HTTP's, 0 when there was no answer; ``reason`` is Kubernetes' word;
    ``causes`` are the fields that are refused, each with what is wrong.
    """

    causes: tuple[tuple[str, str], ...] = ()

    def __init__(
        self, what: str, message: str, status: int = 0, reason: str = "", retry_after: float | None = None
    ) -> None:
        self.what, self.message = what, " ".join(message.split())
        self.status, self.reason, self.retry_after = status, reason, retry_after
        mark = " ".join(str(part) for part in (status or "", reason) if part)
        super().__init__(f"{what}: {self.message}" + (f" ({mark})" if mark else ""))


class NotFound(ApiError):
    """No such object, or no such kind: ``missing_kind`` tells them apart."""

    @property
    def missing_kind(self) -> bool:
        """The API server doesn't know the kind: its CRD isn't installed."""
        return "could not find the requested resource" in self.message or "page not found" in self.message


class Exists(ApiError):
    """Created already."""


class Conflict(ApiError):
    """Changed since it was read (compare and set), or a field is another manager's (server-side apply)."""


class Invalid(ApiError):
    """The API server or an admission webhook refuses the object."""


class Forbidden(ApiError):
    """Not allowed, by RBAC, quota or admission; or not logged in: ``refused`` tells them apart."""

    @property
    def refused(self) -> bool:
        """The API server knows who asks, and says no. Credentials that have expired say nothing of anybody's rights."""
        return self.status == 403


class Gone(ApiError):
    """The resourceVersion is too old to continue from: list again."""


class Throttled(ApiError):
    """Too many requests; ``retry_after`` is in seconds."""


class Unavailable(ApiError):
    """No answer, a broken answer, or a server in trouble: worth another try."""


class NotLeading(ApiError):
    """A write after the lease was lost; it was not sent."""


_CLASSES: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    405: Invalid,
    409: Conflict,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: Throttled,
}


_UNTYPED = "failed to create typed patch object"
"""Server-side apply's word for a field of another type than the schema's."""


def error_of(what: str, status: int, body: bytes | dict[str, Any], retry_after: str | None = None) -> ApiError:
    """The error that an answer means. ``body`` is a Status object, or whatever a proxy in between wrote."""
    document = body if isinstance(body, dict) else _parsed(body)
    reason = str(document.get("reason") or "")
    message = str(document.get("message") or "no explanation")
    cls = Unavailable if status >= 500 else _CLASSES.get(status, ApiError)
    if reason == "AlreadyExists":
        cls = Exists
    elif reason in ("Expired", "Gone"):
        cls = Gone
    elif status == 500 and message.startswith(_UNTYPED):  # the user's mistake, whatever the number says
        cls, message = Invalid, message.removeprefix(_UNTYPED).partition("): ")[2] or message
    if status == 401:
        message = "the API server does not accept these credentials; log in again"
    delay = float(retry_after) if retry_after and retry_after.isdigit() else None
    error = cls(what, message, status, reason, delay)
    causes = (document.get("details") or {}).get("causes") or ()
    error.causes = tuple((str(one.get("field") or ""), str(one.get("message") or "")) for one in causes)
    return error


def _parsed(body: bytes) -> dict[str, Any]:
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        return {"message": text[:200]}
    return document if isinstance(document, dict) else {"message": text[:200]}
