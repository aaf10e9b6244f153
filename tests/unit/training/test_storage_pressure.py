"""Checkpoints that come faster than storage takes them: training waits, and says so (a bucket behind a narrow line)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_training_ledger import opened, writer
from test_training_loop import Run

from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training import ledger as ledger_module
from dinoctl.training import loop as loop_module
from dinoctl.training.engines.base import Slice
from dinoctl.training.upload import Upload
from support.faults import Fault, Proxy

SIZE, RATE = 2_000_000, 4_000_000  # bytes of a checkpoint, bytes a second of the line: half a second
NARROW = [Fault("bandwidth", key=r"\.bin", method="PUT", value=RATE)]


def ones(step: int) -> list[Slice]:
    return [Slice("t", "param", (SIZE // 4,), 0, torch.full((SIZE // 4,), float(step)))]


def test_an_upload_tells_its_age_size_and_rate(s3: str, s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_TELL_S", 0.1)
    s3_faults.faults = NARROW
    ledger, told = Ledger(open_storage(f"{s3}/job/checkpoints")), list[Upload]()
    own = writer(ledger)
    own.save(5, ones(5), behind=told.append)
    assert (own.wait_s < 0.5, told) == (True, [])
    first = own.upload
    assert first is not None
    assert (first.step, first.size, first.running, own.last) == (5, SIZE, True, None)

    own.save(10, ones(10), behind=told.append)
    assert own.wait_s > 0.25, "it waits for the one before"
    assert set(told) == {first}, "and says for what"
    assert len(told) >= 2
    assert (first.running, first.sent, own.last) == (False, SIZE, first)
    assert 0 < first.bytes_per_s <= 1.1 * RATE
    assert first.age_s >= SIZE / RATE
    assert str(first) == f"2 MB in {first.age_s:.0f} s, {first.bytes_per_s / 1e6:.1f} MB/s"

    own.wait()
    own.close()
    assert torch.equal(opened(ledger).tensor("param", "t"), ones(10)[0].data)


def bytes_of_a_checkpoint(root: Path) -> int:
    run = Run(root, steps=4)
    run.go()
    return sum(entry.size for entry in run.ledger.storage.entries("step-00000004") if entry.key.endswith(".bin"))


@pytest.fixture
def narrow(tmp_path: Path, s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A line on which a checkpoint takes so many seconds."""
    monkeypatch.setattr(ledger_module, "_TELL_S", 0.1)
    monkeypatch.setattr(loop_module, "_WAIT_TOLD_S", 0.3)
    size = bytes_of_a_checkpoint(tmp_path / "first")

    def set_seconds(seconds: float) -> None:
        s3_faults.faults = [Fault("bandwidth", key=r"\.bin", method="PUT", value=size / seconds)]

    return set_seconds


def test_a_loop_that_waits_for_storage_warns_with_numbers(
    tmp_path: Path, s3: str, narrow: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(3.0)  # steps 4 to 8 take a fraction of it
    run = Run(tmp_path, uri=f"{s3}/job/checkpoints", log_every=1)
    run.go()
    assert run.ledger.steps() == [4, 8, 12]
    assert run.recorded[5]["checkpoint/pending_s"] > 0, "one is on its way"
    assert run.recorded[9]["checkpoint/wait_s"] > 0.3
    assert run.recorded[9]["checkpoint/store_s"] >= 3.0
    assert run.recorded[8]["checkpoint/bytes_per_s"] >= 0
    during = [report for report in run.reports if "waits for the checkpoint before it" in report.warning]
    assert {report.step for report in during} <= {8, 12}
    assert len(during) >= 4, "while it waits the progress shows it, again and again"
    after = [report.warning for report in run.reports if 8 < report.step < 12]
    assert all("step 8 waited" in warning and "raise policy.checkpoint.everySteps" in warning for warning in after)
    assert "MB/s): checkpoints come faster than they are stored" in capsys.readouterr().err


def test_a_loop_that_does_not_wait_says_nothing(tmp_path: Path, s3: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, uri=f"{s3}/job/checkpoints", every=12)
    run.go()
    assert {report.warning for report in run.reports} == {""}
    assert run.recorded[12]["checkpoint/wait_s"] < 0.3
    assert "warning" not in capsys.readouterr().err
