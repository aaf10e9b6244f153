"""How often an attempt tells of its progress."""

from typing import Any

from dinoctl.handover.reports import _pause

SAID: dict[str, Any] = {"attempt": 1, "step": 10, "phase": "train", "warning": "", "head": None, "runId": "run"}


def test_steps_alone_are_told_of_seldom_and_news_soon() -> None:
    head = {"step": 10, "at": 1.0, "attempt": 1}
    steps = _pause(SAID, {**SAID, "step": 11, "loss": 2.0}, 0)
    assert steps >= 15, "a thousand jobs count steps at one API server"
    for news in ({"head": head}, {"phase": "evaluate"}, {"warning": "the loss is not a number"}, {"runId": "other"}):
        assert _pause(SAID, {**SAID, **news}, 0) <= 5
    assert _pause(None, SAID, 0) <= 5
    assert _pause({**SAID, "warning": "1 NaN"}, {**SAID, "warning": "2 NaN"}, 0) == steps


def test_failures_make_it_slower_within_a_minute() -> None:
    waits = [_pause(None, SAID, failures) for failures in range(12)]
    assert waits == sorted(waits)
    assert waits[3] > waits[0]
    assert waits[-1] == 60
