"""The shipper in a thread of its own, so that training never waits for a server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dinoctl.tracking.shipper import Shipped, Shipper


class BackgroundShipper:
    """Ships every `interval_s` seconds from `start` to `stop`. A daemon thread: it never keeps a process alive.

    Where the run has to be found or made first, a function makes the shipper: it is called in the thread, until it
    succeeds.
    """

    def __init__(self, shipper: Shipper | Callable[[], Shipper], *, interval_s: float = 10.0) -> None:
        self._shipper = shipper if isinstance(shipper, Shipper) else None
        self._make: Callable[[], Shipper] | None = None if isinstance(shipper, Shipper) else shipper
        self._interval = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metric-shipper", daemon=True)
        self.last = Shipped(0, 0, "nothing shipped yet")

    def start(self) -> None:
        """Begin. Raises RuntimeError when called twice."""
        self._thread.start()

    def stop(self, timeout: float) -> Shipped:
        """Send the rest, waiting at most `timeout` seconds. Never raises for an outage; what is left stays in the
        spool.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if self._thread.is_alive():
            left = f"still sending after {timeout:g} s; what is left stays in the spool and goes with the next attempt"
            return Shipped(self.last.sent, self.last.skipped, left)
        return self.last

    def _work(self) -> None:
        while not self._stopping.wait(self._interval):
            self.last = self._ship()
        self.last = self._ship(final=True)

    def _ship(self, final: bool = False) -> Shipped:
        if self._shipper is None and self._make is not None:
            try:
                self._shipper = self._make()
            except Exception as failure:  # whatever mlflow raises where it can't be reached
                return Shipped(0, 0, f"{type(failure).__name__}: {failure}")
        return self._shipper.ship(final) if self._shipper is not None else self.last
