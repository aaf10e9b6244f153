"""Questions to storage, which may hang: none holds up a thread of the operator for long, and none that nobody waits for
any more is begun.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dinoctl.data.errors import StorageError

T = TypeVar("T")
_LIMIT_S = 20.0
"""How long anybody waits for an answer; the storage itself goes on trying for longer."""
_SILENT_S = 30.0
"""How long a place that gave none is left alone, so that jobs of others don't wait for its jobs."""


class Bounded:
    """Asks. Buckets are places of their own; all of ``file://`` is one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="storage")
        self._silent: dict[str, float] = {}

    def __call__(self, uri: str, call: Callable[[], T]) -> T:
        """The answer of the storage at ``uri``.

        Raises:
            StorageError: it takes too long, or has just taken too long.
        """
        place = "/".join(uri.split("/")[:3])
        if not self._may_ask(place):
            raise _no_answer(place)
        asked = self._pool.submit(call)
        try:
            answer = asked.result(_LIMIT_S)
        except TimeoutError:
            asked.cancel()
            self._silent[place] = time.monotonic() + _SILENT_S
            raise _no_answer(place) from None
        except BaseException:
            self._silent.pop(place, None)  # also a refusal is an answer
            raise
        self._silent.pop(place, None)
        return answer

    def close(self) -> None:
        """Waits for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _may_ask(self, place: str) -> bool:
        """Of a place that was silent, one finds out whether it speaks again."""
        until = self._silent.get(place)
        if until is None:
            return True
        if time.monotonic() < until:
            return False
        self._silent[place] = time.monotonic() + _LIMIT_S
        return True


def _no_answer(place: str) -> StorageError:
    return StorageError(f"{place} gave no answer within {_LIMIT_S:g} s")
