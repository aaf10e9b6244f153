"""How many bytes may be on the way at once, when a request is late, and how many requests a second are allowed."""

from __future__ import annotations

from collections import deque

_STRETCH = 2.5  # times as long as the fastest ones: more requests only queue
_SHRINK, _REFUSED = 0.8, 0.5
_FORGET_S = 4.0  # a fastest time counts twice after this, so that a network that became slower is not taken for full
_SMOOTH = 0.2
_SEEN, _ENOUGH = 200, 20
_LATE, _LEAST_S = 2.0, 0.05


class Window:
    """Bytes in flight, by additive increase and multiplicative decrease: it follows bandwidth times latency.

    It grows while the consumer starves (doubling at first), shrinks when requests of a size take much longer than the
    fastest ones did (they queue somewhere: network, server, or this process's own cores) or when the server refuses.
    """

    def __init__(self, start: int, floor: int, ceiling: int) -> None:
        self.size = float(min(max(start, floor), max(ceiling, floor)))
        self._floor, self._ceiling = float(floor), float(max(ceiling, floor))
        self._doubling, self._stretch, self._calm = True, 1.0, 0.0
        self._fastest: dict[int, tuple[float, float]] = {}  # by size: seconds, and when that was last brought forward

    def delivered(self, count: int, seconds: float, now: float, *, starving: bool) -> None:
        """A request of ``count`` bytes took ``seconds``; ``starving``: since the last one the consumer had to wait, and
        the window was what kept a request back.
        """
        size = count.bit_length()
        known, at = self._fastest.get(size, (seconds, now))
        fastest = min(seconds, known * 2 ** (max(now - at, 0.0) / _FORGET_S))
        self._fastest[size] = fastest, now
        self._stretch += _SMOOTH * (seconds / max(fastest, 1e-6) - self._stretch)
        if self._stretch > _STRETCH:
            self._shrink(_SHRINK, seconds, now)
        elif starving:
            self.size += count if self._doubling else count * count / self.size
            self.size = min(self.size, self._ceiling)

    def refused(self, now: float) -> None:
        """The server asked for fewer requests."""
        self._shrink(_REFUSED, 1.0, now)

    def _shrink(self, factor: float, pause_s: float, now: float) -> None:
        """At most once in the time that it takes to see the effect."""
        self._doubling = False
        if now >= self._calm:
            self.size = max(self.size * factor, self._floor)
            self._calm = now + pause_s


class Lateness:
    """After how many seconds a second request is worth its price: twice the 95th percentile of the last 200."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_SEEN)
        self._limit: float | None = None

    def add(self, seconds: float) -> None:
        """A request was answered."""
        self._seconds.append(seconds)
        if len(self._seconds) >= _ENOUGH:
            ranked = sorted(self._seconds)
            self._limit = max(_LATE * ranked[int(0.95 * len(ranked))], _LEAST_S)

    @property
    def limit(self) -> float | None:
        """Seconds; None while too little is known."""
        return self._limit


class TokenBucket:
    """At most ``rate`` requests a second, a second's worth of them at once."""

    def __init__(self, rate: float) -> None:
        self._rate, self._burst = rate, max(rate, 1.0)
        self._tokens, self._at = self._burst, 0.0

    def reserve(self, now: float) -> float:
        """Takes a token; returns the seconds to wait before using it."""
        self._tokens = min(self._tokens + (now - self._at) * self._rate, self._burst)
        self._at = now
        self._tokens -= 1.0
        return max(-self._tokens / self._rate, 0.0)
