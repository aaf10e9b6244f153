"""Exactly once, with faults at every moment: before and after the request, and at every write of the cursor."""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric

from dinoctl.tracking import cursor as cursors
from dinoctl.tracking import shipper as module
from dinoctl.tracking.background import BackgroundShipper
from dinoctl.tracking.client import mlflow_name
from dinoctl.tracking.shipper import Shipper
from dinoctl.tracking.spool import Spool, read_spool


class Crash(BaseException):
    """The process is killed here."""


@dataclass
class Server:
    """MLflow's semantics, without its filter of identical points: what is sent twice is stored twice."""

    stored: list[Metric] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    fault: Callable[[str], object] = lambda moment: None

    def log_batch(self, run_id: str, metrics: Sequence[Metric]) -> None:
        self.fault("before")
        assert 0 < len(metrics) <= 1000
        self.stored += metrics
        self.batches.append(len(metrics))
        self.fault("after")

    def get_run(self, run_id: str) -> Any:
        self.fault("read")
        latest = {metric.key: metric for metric in sorted(self.stored, key=lambda metric: metric.step)}
        proto = SimpleNamespace(metrics=list(latest.values()))
        return SimpleNamespace(data=SimpleNamespace(to_proto=lambda: proto))

    def points(self) -> Counter[tuple[str, int]]:
        return Counter((metric.key, metric.step) for metric in self.stored)


def shipper(folder: Path, server: Server, **options: float) -> Shipper:
    return Shipper(folder / "spool", lambda: server, "run", folder / "cursor.json", **options)


def spooled(folder: Path) -> set[tuple[str, int]]:
    return {(mlflow_name(p.key), p.step) for p in read_spool(folder / "spool") if not math.isinf(p.value)}


def write(folder: Path, attempt: int, steps: Sequence[int], keys: Sequence[str] = ("loss", "top1@10")) -> None:
    with Spool(folder / "spool", attempt=attempt) as spool:
        for step in steps:
            spool.append(step, {key: float(attempt) for key in keys}, time_s=step)


@contextmanager
def fault_at(server: Server, moments: Sequence[str], error: BaseException) -> Iterator[None]:
    """Raise at the given moments, in order, once each (`save` is of the cursor, the others are the server's)."""
    left = list(moments)

    def fault(moment: str) -> None:
        if left and left[0] == moment:
            left.pop(0)
            raise error

    def save(path: Path, cursor: cursors.Cursor) -> None:
        fault("save")
        saved(path, cursor)

    server.fault, saved = fault, cursors.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.cursors, "save", save)
        yield
    server.fault = lambda moment: None


def test_everything_is_sent_once_in_batches_of_a_thousand(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, range(1250))
    first = shipper(tmp_path, server)
    assert first.ship().sent == 2500
    assert server.batches == [1000, 1000, 500]
    assert first.ship(final=True).sent == shipper(tmp_path, server).ship().sent == 0
    assert server.points() == Counter(spooled(tmp_path))
    assert server.stored[-1].timestamp == 1_249_000


def test_a_line_of_more_than_a_thousand_metrics_is_split(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, [1, 2], keys=[f"m{index}" for index in range(1500)])
    assert shipper(tmp_path, server).ship().sent == 3000
    assert server.points() == Counter(spooled(tmp_path))


def test_new_lines_are_sent_and_old_ones_not_read_again(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, [1, 2])
    sender = shipper(tmp_path, server)
    sender.ship()
    path = tmp_path / "spool" / "metrics-1.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"step":1', b'"step":9'))  # a reader of old lines would send step 9
    write(tmp_path, 1, [3])
    assert sender.ship().sent == 2
    assert server.points() == Counter((key, step) for key in ("loss", "top1_at_10") for step in (1, 2, 3))


def test_steps_that_run_again_are_not_sent_again(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, [10, 20, 30])
    shipper(tmp_path, server).ship()
    write(tmp_path, 1, [40])  # spooled by the first attempt, void before it was sent
    write(tmp_path, 2, [20, 30, 40, 50])
    assert shipper(tmp_path, server).ship().sent == 4
    assert server.points() == Counter(spooled(tmp_path))
    assert {metric.step: metric.value for metric in server.stored} == {10: 1, 20: 1, 30: 1, 40: 2, 50: 2}


def test_a_lost_cursor_and_spool_do_not_double_points(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path / "old", 1, [10, 20, 30])
    shipper(tmp_path / "old", server).ship()
    write(tmp_path / "new", 2, [20, 30, 40])
    assert shipper(tmp_path / "new", server).ship().sent == 2
    assert set(server.points().values()) == {1}
    assert max(server.points())[1] == 40


def test_infinite_values_are_left_out_and_counted_nan_is_sent(tmp_path: Path) -> None:
    server = Server()
    with Spool(tmp_path / "spool", attempt=1) as spool:
        spool.append(1, {"a": math.inf, "b": -math.inf, "c": math.nan}, time_s=0)
        spool.append(2, {"a": 1.0}, time_s=0)
    assert shipper(tmp_path, server).ship().skipped == 2
    assert shipper(tmp_path, server).ship().skipped == 2
    assert set(server.points()) == {("c", 1), ("a", 2)}


@pytest.mark.parametrize("moment", ["before", "after", "read"])
def test_an_outage_loses_nothing_and_the_next_call_goes_on(tmp_path: Path, moment: str) -> None:
    server = Server()
    write(tmp_path, 1, range(600))
    sender = shipper(tmp_path, server)
    with fault_at(server, [moment], ConnectionError("server down")):
        outcome = sender.ship()
    assert not outcome.complete
    assert outcome.error == "ConnectionError: server down"
    assert sender.ship().complete
    assert server.points() == Counter(spooled(tmp_path))


def test_the_final_call_waits_for_a_short_outage(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, range(5))
    sender = shipper(tmp_path, server, final_budget_s=30)
    with fault_at(server, ["read", "after"], ConnectionError("server down")):
        assert sender.ship(final=True).complete
    assert server.points() == Counter(spooled(tmp_path))


def test_the_final_call_gives_up_after_its_budget(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, range(5))
    with fault_at(server, ["read"] * 100, ConnectionError("server down")):
        outcome = shipper(tmp_path, server, final_budget_s=0.01).ship(final=True)
    assert outcome.error == "ConnectionError: server down"


def test_a_full_disk_under_the_cursor_is_an_outcome_not_an_exception(tmp_path: Path) -> None:
    server = Server()
    write(tmp_path, 1, range(5))
    sender = shipper(tmp_path, server)
    with fault_at(server, ["save"], OSError(28, "No space left on device")):
        assert "No space left" in sender.ship().error
    assert sender.ship().complete
    assert server.points() == Counter(spooled(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"run_id": "another"}', '{"other": 1}', '{"run_id": "run", "sent": {}}']
)
def test_a_damaged_or_foreign_cursor_asks_the_server(tmp_path: Path, content: str) -> None:
    server = Server()
    write(tmp_path, 1, range(5))
    shipper(tmp_path, server).ship()
    (tmp_path / "cursor.json").write_text(content)
    assert shipper(tmp_path, server).ship().sent == 0


moments = st.lists(st.sampled_from(["before", "after", "read", "save"]), max_size=3)
events = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 6)),
        st.tuples(st.just("resume"), st.integers(0, 12)),
        st.tuples(st.just("outage"), moments),
        st.tuples(st.just("crash"), moments),
        st.tuples(st.just("lose disk"), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(events)
def test_any_interleaving_ends_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, Any]]
) -> None:
    """Training, resumes, outages, kills and lost disks in any order: no point twice, none of the spool missing."""
    folder, server = tmp_path_factory.mktemp("ship"), Server()
    attempt, step, floor, sender = 1, 0, 0, shipper(folder, server)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 5)
        for event, detail in story:
            if event == "train":
                write(folder, attempt, range(step, step + detail))
                step += detail
            elif event == "resume":
                attempt, step = attempt + 1, max(floor, min(step, detail))
            elif event == "lose disk":
                folder = tmp_path_factory.mktemp("ship")
                attempt, step, sender = attempt + 1, max(floor, step // 2), shipper(folder, server)
                floor = step  # below it a gap may have been lost with the disk, and stays
            else:
                error = Crash() if event == "crash" else ConnectionError("down")
                with fault_at(server, detail, error):
                    try:
                        sender.ship()
                    except Crash:
                        sender = shipper(folder, server)
        assert sender.ship().complete
    assert set(server.points().values()) <= {1}
    assert spooled(folder) <= set(server.points())


def test_the_background_shipper_sends_while_training_goes_on(tmp_path: Path) -> None:
    server = Server()
    background = BackgroundShipper(shipper(tmp_path, server), interval_s=0.01)
    background.start()
    for step in range(20):
        write(tmp_path, 1, [step])
    assert background.stop(timeout=30).complete
    assert server.points() == Counter(spooled(tmp_path))


def test_stopping_does_not_wait_for_a_server_that_hangs(tmp_path: Path) -> None:
    release, server = threading.Event(), Server()
    write(tmp_path, 1, [1])
    server.fault = lambda moment: release.wait(60)
    background = BackgroundShipper(shipper(tmp_path, server), interval_s=0.001)
    background.start()
    outcome = background.stop(timeout=0.1)
    release.set()
    assert not outcome.complete
    assert "stays in the spool" in outcome.error
    assert background.stop(timeout=30).complete


def test_stopping_what_was_never_started_is_harmless(tmp_path: Path) -> None:
    assert not BackgroundShipper(shipper(tmp_path, Server())).stop(timeout=1).complete
