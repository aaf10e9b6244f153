import errno
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.tracking.spool import Point, Spool, history, read_spool


def write(directory: Path, attempt: int, steps: list[int], resumed_at: int | None = None) -> None:
    with Spool(directory, attempt=attempt, resumed_at=resumed_at) as spool:
        for step in steps:
            spool.append(step, {"loss": attempt + step / 1000}, time_s=1.5 * step)


def steps_by_attempt(directory: Path) -> list[tuple[int, int]]:
    return [(point.attempt, point.step) for point in read_spool(directory)]


def test_points_come_back_as_they_were_written(tmp_path: Path) -> None:
    with Spool(tmp_path, attempt=3) as spool:
        spool.append(7, {"loss": 0.1, "lr": 2}, time_s=12.25)
    assert list(read_spool(tmp_path)) == [Point(3, 7, "loss", 0.1, 12.25), Point(3, 7, "lr", 2.0, 12.25)]


def test_a_missing_directory_has_no_points(tmp_path: Path) -> None:
    assert list(read_spool(tmp_path / "none")) == []
    assert history(tmp_path / "none") == {}


def test_nan_and_inf_survive_as_strings_of_strict_json(tmp_path: Path) -> None:
    with Spool(tmp_path, attempt=1) as spool:
        spool.append(0, {"a": math.nan, "b": math.inf, "c": -math.inf}, time_s=0)
    line = (tmp_path / "metrics-1.jsonl").read_text().splitlines()[1]
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {"a": "nan", "b": "inf", "c": "-inf"}
    assert [str(point.value) for point in read_spool(tmp_path)] == ["nan", "inf", "-inf"]


def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path: Path) -> None:
    write(tmp_path, 1, [10, 20])
    path = tmp_path / "metrics-1.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        assert steps_by_attempt(tmp_path) == [(1, 10)]
        write(tmp_path, 1, [20])
        assert path.read_bytes() == whole


def test_a_long_torn_tail_is_cut_off_too(tmp_path: Path) -> None:
    write(tmp_path, 1, [10])
    with (tmp_path / "metrics-1.jsonl").open("ab") as file:
        file.write(b"\0" * 200_000)
    write(tmp_path, 1, [20])
    assert steps_by_attempt(tmp_path) == [(1, 10), (1, 20)]


def test_a_damaged_line_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, [10])
    with (tmp_path / "metrics-1.jsonl").open("ab") as file:
        file.write(
            b'\x00\xff garbage\n[1]\n{"step": "x", "time": 0, "metrics": {}}\n{"step": 1, "time": 0, "metrics": 3}\n'
        )
    write(tmp_path, 1, [20])
    assert steps_by_attempt(tmp_path) == [(1, 10), (1, 20)]


def test_a_resumed_attempt_supersedes_what_came_after_its_start(tmp_path: Path) -> None:
    write(tmp_path, 1, [10, 20, 30, 40])
    write(tmp_path, 2, [30, 40, 50])
    assert steps_by_attempt(tmp_path) == [(1, 10), (1, 20), (2, 30), (2, 40), (2, 50)]
    assert history(tmp_path)["loss"][2] == (30, 2.03)


def test_an_explicit_start_counts_before_the_first_logged_step(tmp_path: Path) -> None:
    write(tmp_path, 1, [10, 20, 30])
    write(tmp_path, 2, [30], resumed_at=15)
    assert steps_by_attempt(tmp_path) == [(1, 10), (2, 30)]


def test_an_attempt_that_wrote_nothing_supersedes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 1, [10, 20])
    write(tmp_path, 2, [], resumed_at=5)
    assert steps_by_attempt(tmp_path) == [(1, 10), (1, 20)]


def test_a_repeated_key_and_step_in_one_attempt_counts_once(tmp_path: Path) -> None:
    with Spool(tmp_path, attempt=1) as spool:
        spool.append(10, {"loss": 1.0}, time_s=0)
        spool.append(10, {"loss": 2.0, "knn": 3.0}, time_s=0)
        spool.append(5, {"loss": 4.0, "eval": 5.0}, time_s=0)
    assert history(tmp_path) == {"loss": [(10, 1.0)], "knn": [(10, 3.0)], "eval": [(5, 5.0)]}


def test_a_full_disk_says_so_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with Spool(tmp_path, attempt=1) as spool:
        spool.append(1, {"loss": 1.0}, time_s=0)
        room = [12]

        def full(file: int, data: bytes) -> int:
            if room[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = real(file, data[: room[0]])
            room[0] -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match=r"No space left.*free some space") as caught:
                spool.append(2, {"loss": 2.0}, time_s=0)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "metrics-1.jsonl")
        assert (tmp_path / "metrics-1.jsonl").read_bytes().endswith(b"}\n")
        spool.append(3, {"loss": 3.0}, time_s=0)
    assert steps_by_attempt(tmp_path) == [(1, 1), (1, 3)]


def test_a_failed_flush_is_told_by_the_next_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Spool(tmp_path, attempt=1) as spool:
        spool.append(1, {"loss": 1.0}, time_s=0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            spool.flush()
        with pytest.raises(OSError, match="Input/output error"):
            spool.append(2, {"loss": 1.0}, time_s=0)
        spool.append(2, {"loss": 1.0}, time_s=0)


def test_closing_twice_is_allowed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, attempt=1)
    spool.close()
    spool.close()


attempts = st.lists(
    st.tuples(
        st.none() | st.integers(0, 12), st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), max_size=8)
    ),
    max_size=4,
)


@settings(deadline=None)
@given(attempts)
def test_merging_is_exactly_once_and_the_newest_attempt_wins(
    tmp_path_factory: pytest.TempPathFactory, given_attempts: list[tuple[int | None, list[tuple[int, str]]]]
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    expected: dict[tuple[str, int], int] = {}
    oldest = True
    for attempt, (resumed_at, appends) in enumerate(given_attempts, start=1):
        with Spool(directory, attempt=attempt, resumed_at=resumed_at) as spool:
            for step, key in appends:
                spool.append(step, {key: attempt}, time_s=0)
        if appends:
            start = appends[0][0] if resumed_at is None else resumed_at
            expected = {at: by for at, by in expected.items() if at[1] < start}
            newest: dict[str, int] = {}
            for step, key in appends:
                if step > newest.get(key, -1):
                    newest[key] = step
                    if oldest or step >= start:
                        expected[key, step] = attempt
            oldest = False
    points = list(read_spool(directory))
    assert len(points) == len(expected)
    assert {(point.key, point.step): point.attempt for point in points} == expected
    assert points == list(read_spool(directory))
    assert all(sorted(curve) == curve for curve in history(directory).values())
