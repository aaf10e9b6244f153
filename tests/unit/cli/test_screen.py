"""What the screen says of a job that runs: pace, warnings, and what comes after the last step."""

from __future__ import annotations

import pytest

from dinoctl.cli.screen import Lines, _note
from dinoctl.lifecycle import Attempt, AttemptState, Condition, ConditionType, Progress, Reason, Status, Truth, state_of


def running(**fields: object) -> Status:
    progress = Progress(1, 50, 100, 5.0, images_per_s=80.0, eta_s=65.0, **fields)  # type: ignore[arg-type]
    attempt = Attempt(1, AttemptState.RUNNING, "s", intended_at=1.0, started_at=2.0)
    conditions = (Condition(ConditionType.RUNNING, Truth.TRUE, Reason.IN_PROGRESS, "", 1.0),)
    status = Status("s", attempts=(attempt,), conditions=conditions, progress=progress)
    assert state_of(status) == "Running"
    return status


def test_notes_of_a_bar() -> None:
    assert _note(running(), "Running") == "80 images/s  1:05 left"
    assert _note(running(warning="collapse: ..."), "Running") == "80 images/s  1:05 left  warning, see dinoctl status"
    assert _note(running(phase="export"), "Running") == "exporting the model"
    assert _note(running(phase="gate"), "Running") == "measuring for the gate"


def test_lines_tell_a_warning_and_a_phase_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for status in (running(), running(warning="collapse: x"), running(warning="collapse: x"), running(phase="gate")):
        lines.update({"train": status})
    shown = capsys.readouterr().err
    assert shown.count("train: collapse: x") == 1
    assert shown.count("train: measuring for the gate") == 1
    assert shown.count("train: step 50 of 100, 80 images/s, 1:05 left") == 1
