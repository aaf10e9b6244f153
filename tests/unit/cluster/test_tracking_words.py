"""The tracking server's child: how many there are, and what is said of their trouble."""

from contextlib import ExitStack

import pytest

from dinoctl.cluster import tracking_child
from dinoctl.cluster.tracking_child import Busy, Tracking, TrackingProblem


def test_no_more_children_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_child.subprocess, "Popen", lambda *_, **__: pytest.fail("one more was started"))
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(tracking_child._CHILDREN)
        with pytest.raises(Busy):
            Tracking("http://mlflow")._ask({})
    assert tracking_child._CHILDREN.acquire(blocking=False), "none is lost"
    tracking_child._CHILDREN.release()


def test_the_same_trouble_in_the_same_words() -> None:
    """Else each try would be another event and another write of the status."""
    text = "(Caused by NewConnectionError('<urllib3.connection.HTTPConnection object at 0x7f{}b0>: refused'))"
    told = set()
    for address in ("12", "34"):
        with pytest.raises(TrackingProblem) as caught:
            Tracking("http://me:secret@mlflow")._answer(text.format(address), 1)
        told.add(str(caught.value))
    (line,) = told
    assert "HTTPConnection: refused" in line
    assert "secret" not in line
