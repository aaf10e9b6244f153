"""Reporting progress through the API server: with few requests, with the token of now, never over a successor's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoctl.handover.progress_map import ProgressMap, ReplacedError
from support.configmap_server import ConfigMap, serve


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfigMap]:
    with serve(tmp_path / "credentials", "vision", "train-progress") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def place(held: ConfigMap) -> ProgressMap:
    return ProgressMap("vision", "train-progress", 2, held.credentials)


def test_one_request_a_report(held: ConfigMap, place: ProgressMap) -> None:
    for step in range(3):
        place.write({"attempt": 2, "step": step})
    assert [said["step"] for _, said in held.patches] == [0, 1, 2]
    assert held.requests == ["GET", "PATCH", "PATCH", "PATCH"]


def test_others_may_change_the_object(held: ConfigMap, place: ProgressMap) -> None:
    place.write({"attempt": 2, "step": 1})
    held.change({"attempt": 1, "step": 9})
    place.write({"attempt": 2, "step": 2})
    assert held.said == {"attempt": 2, "step": 2}


def test_a_successor_is_not_overwritten(held: ConfigMap, place: ProgressMap) -> None:
    place.write({"attempt": 2, "step": 100})
    held.change({"attempt": 3, "step": 90})
    with pytest.raises(ReplacedError, match="attempt 3 reports already"):
        place.write({"attempt": 2, "step": 101})
    assert held.said == {"attempt": 3, "step": 90}


@pytest.mark.parametrize("text", ["not JSON", "[]", "3", '{"attempt": null}', '{"step": 1}'])
def test_what_somebody_wrote_there_by_hand_is_replaced(held: ConfigMap, place: ProgressMap, text: str) -> None:
    held.data["progress.json"] = text
    place.write({"attempt": 2, "step": 1})
    assert held.said == {"attempt": 2, "step": 1}


def test_the_token_is_read_each_time(held: ConfigMap, place: ProgressMap) -> None:
    place.write({"attempt": 2, "step": 1})
    (held.credentials / "token").write_text("second-token\n")
    place.write({"attempt": 2, "step": 2})
    assert held.said["step"] == 2


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_a_refusal_is_one_line_and_passes(held: ConfigMap, place: ProgressMap, status: int) -> None:
    place.write({"attempt": 2, "step": 1})
    held.refuse = [status]
    with pytest.raises(OSError, match=f"PATCH https://.*train-progress: {status} refused$"):
        place.write({"attempt": 2, "step": 2})
    place.write({"attempt": 2, "step": 3})
    assert held.said["step"] == 3


def test_nobody_there(held: ConfigMap, place: ProgressMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    with pytest.raises(OSError, match=r"GET https://127\.0\.0\.1:9/"):
        ProgressMap("vision", "train-progress", 2, held.credentials).write({"attempt": 2})


def test_another_authority_is_not_believed(held: ConfigMap, tmp_path: Path) -> None:
    with serve(tmp_path / "other", "vision", "train-progress") as other:
        (held.credentials / "ca.crt").write_bytes((other.credentials / "ca.crt").read_bytes())
    with pytest.raises(OSError, match="certificate verify failed"):
        ProgressMap("vision", "train-progress", 2, held.credentials).write({"attempt": 2})
    assert not held.patches
