"""Waiting for what happens soon."""

import time
from collections.abc import Callable


def within(limit_s: float, condition: Callable[[], bool], pause_s: float = 0.05) -> bool:
    """Whether ``condition`` becomes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
