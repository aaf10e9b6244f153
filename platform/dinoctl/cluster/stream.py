"""Answers that go on: watches and logs."""

import json
from collections.abc import Callable, Iterator

import urllib3

from dinoctl.cluster.errors import ApiError, error_of
from dinoctl.cluster.protocol import Event

Unreachable = Callable[[str, Exception], ApiError]


def lines(response: urllib3.BaseHTTPResponse, what: str, unreachable: Unreachable) -> Iterator[bytes]:
    """Whole lines, as they come; an unfinished last one too."""
    rest = b""
    try:
        for chunk in response.stream(2**16, decode_content=True):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole
        if rest:
            yield rest
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # closed by another thread: any of them
        raise unreachable(what, error) from error
    finally:
        response.close()


class HttpWatch:
    """See ``protocol.Watch``."""

    def __init__(self, response: urllib3.BaseHTTPResponse, what: str, unreachable: Unreachable) -> None:
        self._response, self._what, self._closed = response, what, False
        self._lines = lines(response, what, unreachable)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            line = next(self._lines)
            event = json.loads(line)
        except ApiError:
            if self._closed:
                raise StopIteration from None
            raise
        except ValueError:  # cut off in the middle of an event: the watch is resumed before it
            raise StopIteration from None
        if event["type"] == "ERROR":
            status = event["object"]
            raise error_of(self._what, int(status.get("code") or 500), status)
        return event["type"], event["object"]

    def close(self) -> None:
        """Ends a read that another thread waits in."""
        self._closed = True
        try:
            self._response.shutdown()
        except (AttributeError, OSError, ValueError):  # the end came first
            self._response.close()
