"""Checkpoints through a line and a server that fail, while they are written and while they are read: the same bytes in
the end, or a reason in a line. Each is a multipart upload of three parts a rank.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_training_ledger import assert_holds, opened, save

from dinoctl.data import s3 as s3_module
from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training import snapshot
from dinoctl.training.ledger import CorruptCheckpointError
from support.faults import Fault, Proxy
from support.s3server import S3Server

STATE = {"t": torch.randn(6_000_000, generator=torch.Generator().manual_seed(1))}  # 24 MB, of two ranks
PASSING = {
    "busy": Fault("slowdown", rate=0.3),
    "error": Fault("error", rate=0.2),
    "reset": Fault("reset", rate=0.2),
    "lost answers": Fault("lost-answer", method="PUT|POST|DELETE", rate=0.3),
    "cut short": Fault("truncate", method="GET", rate=0.3),
    "wrong bytes": Fault("flip", key=r"\.bin|\.json", rate=0.25),
    "slow": Fault("bandwidth", key=r"\.bin", value=20e6),
    "far": Fault("latency", value=0.05),
}
LASTING = {
    "expired": (Fault("expired"), "the credentials have expired; renew them"),
    "skew": (Fault("skew"), "this machine's clock is wrong; synchronise it"),
    "denied": (Fault("denied", key=r"\.bin"), "access denied; check the credentials' permissions"),
}
MISSING = Fault("missing", key=r"\.bin", method="GET|HEAD")


@pytest.fixture
def ledger(s3: str, s3_faults: Proxy, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(s3_module, "_parts", partial(s3_module._parts, part=5 * 2**20))
    monkeypatch.setattr(snapshot, "_CHUNK", 2**20)
    return Ledger(open_storage(f"{s3}/job/checkpoints"))


def uploads(s3: str, server: S3Server) -> list[str]:
    listed = server.client().list_multipart_uploads(Bucket=s3.removeprefix("s3://"))
    return [one["Key"] for one in listed.get("Uploads", ())]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_changes_nothing(
    ledger: Ledger, s3: str, s3_server: S3Server, s3_faults: Proxy, fault: str
) -> None:
    s3_faults.faults = [PASSING[fault]]
    save(ledger, 5, STATE, 2)
    written = sum(s3_faults.injected.values())
    assert_holds(ledger, STATE, (1, 3))
    assert fault in ("slow", "far", "lost answers") or sum(s3_faults.injected.values()) > written, (
        "reading was hit as well"
    )
    assert fault in ("slow", "far", "cut short") or written > 0, "writing was hit as well"
    assert ledger.steps() == [5]
    s3_faults.faults = ()
    assert uploads(s3, s3_server) == []


@pytest.mark.parametrize("fault", LASTING)
def test_what_does_not_pass_while_writing_is_told(
    ledger: Ledger, s3: str, s3_server: S3Server, s3_faults: Proxy, fault: str
) -> None:
    save(ledger, 5, STATE, 2)
    s3_faults.faults, reason = [LASTING[fault][0]], LASTING[fault][1]
    with pytest.raises(StorageError, match=reason):
        save(ledger, 10, STATE)
    s3_faults.faults = ()
    assert ledger.steps() == [5]
    ledger.begin(2)
    ledger.collect_orphans(2)
    assert uploads(s3, s3_server) == []
    assert not list(ledger.storage.list("step-00000010"))
    assert_holds(ledger, STATE, (3,))


@pytest.mark.parametrize("fault", LASTING)
def test_what_does_not_pass_while_reading_is_told_and_is_no_damage(
    ledger: Ledger, s3_faults: Proxy, fault: str
) -> None:
    save(ledger, 5, STATE, 2)
    s3_faults.faults, reason = [LASTING[fault][0]], LASTING[fault][1]
    with pytest.raises(StorageError, match=reason):
        opened(ledger).tensor("param", "t")
    s3_faults.faults = ()
    assert ledger.steps() == [5]
    assert_holds(ledger, STATE, (1,))


def test_an_object_that_is_missing_gives_way_to_the_checkpoint_before(ledger: Ledger, s3_faults: Proxy) -> None:
    save(ledger, 5, STATE, 2)
    save(ledger, 10, {"t": STATE["t"] + 1}, 2)
    s3_faults.faults = [MISSING]
    with pytest.raises(CorruptCheckpointError, match=r"step 10 is damaged and set aside: .*there is no such object"):
        opened(ledger).tensor("param", "t")
    s3_faults.faults = ()
    assert ledger.steps() == [5]
    assert_holds(ledger, STATE, (3,))
