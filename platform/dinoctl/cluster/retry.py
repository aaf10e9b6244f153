"""Which failed requests are worth another try, and when."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dinoctl.cluster.errors import ApiError, Throttled, Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """``timeout``: seconds for one answer. ``total``: no further try begins after so long."""

    timeout: float = 30.0
    tries: int = 5
    total: float = 60.0
    first: float = 0.2
    longest: float = 5.0


def persistently(call: Callable[[], T], patience: Patience, *, repeatable: bool) -> T:
    """Result of ``call``. A throttled request was not done, so it may always be sent again, after the time that the
    server names; others only if doing them twice is the same as once.
    """
    deadline = time.monotonic() + patience.total
    for number in range(1, patience.tries + 1):
        try:
            return call()
        except ApiError as error:
            wait = _delay(error, number, patience, repeatable=repeatable)
            if wait is None or number == patience.tries or time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


def _delay(error: ApiError, number: int, patience: Patience, *, repeatable: bool) -> float | None:
    if not isinstance(error, (Throttled, Unavailable)) or not (repeatable or isinstance(error, Throttled)):
        return None
    grown = min(patience.longest, patience.first * 2.0 ** (number - 1))
    jitter = random.uniform(0.5, 1.0) * grown  # noqa: S311 - spreads load, guards nothing
    return jitter if error.retry_after is None else error.retry_after + jitter * 0.2
