"""A status survives JSON, tolerates what it does not know, and refuses what it would misread."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.lifecycle import Cause, Phase, Status
from dinoctl.lifecycle.codec import VERSION, decode, encode
from unit.lifecycle.builders import evidence, gated_job, head, output, progress, promotion, running


@settings(deadline=None)
@given(st.from_type(Status))
def test_round_trip_through_json(status: Status) -> None:
    text = json.dumps(encode(status))
    again = decode(json.loads(text))
    assert json.dumps(encode(again)) == text
    assert again == status or "NaN" in text  # which is not equal to itself


def told() -> Status:
    story = running(gated_job()).sees(Phase.RUNNING, head=head(10), progress=progress())
    story.sees(Phase.FAILED, Cause.INFRASTRUCTURE, "node lost").retried().sees(Phase.RUNNING)
    done = {"output": output(attempt=2), "evidence": evidence(attempt=2)}
    return story.sees(Phase.SUCCEEDED, **done).round(promotion=promotion(attempt=2)).known


def test_keys_are_stable() -> None:
    document = encode(told())
    assert document["version"] == VERSION
    expected = "version specHash revision nextAttempt attempts failures beganAt head output evidence promotion outcome"
    assert set(document) == {*expected.split(), "waste", "conditions"}
    assert document["attempts"][0]["state"] == "Ended"
    assert set(document["conditions"][0]) == {"type", "status", "reason", "message", "lastTransition"}


def test_unknown_keys_are_passed_over() -> None:
    document = encode(told())
    document["attempts"][0]["hue"] = document["hue"] = "blue"
    assert decode(document) == told()


def test_whole_numbers_are_read_as_seconds() -> None:
    assert decode({"version": 1, "specHash": "a", "beganAt": 5}) == replace(Status("a"), began_at=5.0)


BAD = {
    "another version": ({"version": 2, "specHash": "a"}, "version 2"),
    "no version": ({"specHash": "a"}, "version None"),
    "missing field": ({"version": 1}, r"status\.specHash: is missing"),
    "wrong type": ({"version": 1, "specHash": 3}, r"status\.specHash: expected a str, found 3"),
    "a truth for a number": ({"version": 1, "specHash": "a", "revision": True}, r"status\.revision: expected a int"),
    "not a list": ({"version": 1, "specHash": "a", "attempts": {}}, r"status\.attempts: expected a list"),
    "not an object": ({"version": 1, "specHash": "a", "head": 3}, r"status\.head: expected an object"),
    "unknown word": (
        {"version": 1, "specHash": "a", "outcome": {"complete": True, "reason": "Luck"}},
        r"status\.outcome\.reason: expected one of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    document, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        decode(document)
