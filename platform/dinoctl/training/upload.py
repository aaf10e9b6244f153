"""A checkpoint on its way to the storage: how old, how far and how fast, for metrics and warnings."""

import time
from collections.abc import Iterable, Iterator


class Upload:
    """One rank's share of a checkpoint of ``size`` bytes, from its copy to the COMMIT."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size
        self.sent = 0
        self._began, self._ended = time.monotonic(), 0.0

    @property
    def running(self) -> bool:
        """Not committed yet."""
        return not self._ended

    @property
    def age_s(self) -> float:
        """Seconds since the copy; of a committed one, until then."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def bytes_per_s(self) -> float:
        """Bytes that the storage took so far, a second."""
        return self.sent / max(1e-9, self.age_s)

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks; each counts as sent when the next one is asked for."""
        for chunk in chunks:
            yield chunk
            self.sent += len(chunk)

    def end(self) -> None:
        """Committed."""
        self._ended = time.monotonic()

    def __str__(self) -> str:
        rate = f"{self.bytes_per_s / 1e6:.1f} MB/s"
        if self.running:
            return f"{self.sent / 1e6:.0f} of {self.size / 1e6:.0f} MB in {self.age_s:.0f} s, {rate}"
        return f"{self.size / 1e6:.0f} MB in {self.age_s:.0f} s, {rate}"
