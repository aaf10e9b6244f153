"""Waiting for what happens soon."""

import time
from collections.abc import Callable
from typing import Any

import pytest


def within(limit_s: float, condition: Callable[[], bool], pause_s: float = 0.05) -> bool:
    """Whether ``condition`` becomes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def until(what: Callable[[], Any], why: Callable[[], str], limit_s: float = 300) -> Any:
    """The first true answer. In time, or the test fails with the words of ``why``."""
    deadline = time.monotonic() + limit_s
    while not (found := what()):
        if time.monotonic() > deadline:
            pytest.fail(why(), pytrace=False)
        time.sleep(0.5)
    return found
