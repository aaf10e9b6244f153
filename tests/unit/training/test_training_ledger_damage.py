"""Checkpoints that are damaged: set aside, the one before counts, and the step is written again when it comes again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_training_ledger import assert_holds, opened, save, state, writer

from dinoctl.data.errors import StorageError
from dinoctl.data.local import LocalStorage
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.engines.base import Slice
from dinoctl.training.ledger import CorruptCheckpointError
from support.faults import Fault, Proxy

Damage = Callable[[Storage, str], None]


def flip(storage: Storage, key: str) -> None:
    data = bytearray(storage.read(key))
    data[len(data) // 2] ^= 1
    storage.write(key, bytes(data))


def truncate(storage: Storage, key: str) -> None:
    storage.write(key, storage.read(key)[:-5])


def delete(storage: Storage, key: str) -> None:
    storage.delete(key)


GONE = "(No such file|no such object)"
DAMAGES = [
    pytest.param(flip, "rank-00001.bin", "is damaged at", id="bit"),
    pytest.param(truncate, "rank-00000.bin", "is damaged at", id="truncated"),
    pytest.param(delete, "rank-00001.bin", GONE, id="missing"),
    pytest.param(flip, "rank-00000.json", "does not match its checksum", id="manifest"),
    pytest.param(delete, "rank-00000.json", GONE, id="no-manifest"),
]


def harm(ledger: Ledger, damage: Damage, file: str) -> None:
    """Steps 5 (good) and 10 (damaged)."""
    save(ledger, 5, state(5), 2)
    save(ledger, 10, state(10), 2)
    damage(ledger.storage, f"step-00000010/a0001/{file}")


def read_all(ledger: Ledger) -> None:
    checkpoint = opened(ledger)
    for name in checkpoint.names("param"):
        checkpoint.tensor("param", name)


@pytest.mark.parametrize(("damage", "file", "reason"), DAMAGES)
def test_damage_sets_the_step_aside(ledger: Ledger, damage: Damage, file: str, reason: str) -> None:
    harm(ledger, damage, file)
    with pytest.raises(CorruptCheckpointError, match=f"step 10 is damaged and set aside: .*{reason}"):
        read_all(ledger)
    assert re.search(reason, json.loads(ledger.storage.read("step-00000010/CORRUPT"))["reason"])
    assert ledger.steps() == [5]
    assert_holds(ledger, state(5))


@pytest.mark.parametrize(("damage", "file", "reason"), DAMAGES)
def test_a_step_that_was_set_aside_is_written_again(ledger: Ledger, damage: Damage, file: str, reason: str) -> None:
    """The next attempt goes on from the step before and comes to the damaged one again."""
    harm(ledger, damage, file)
    with pytest.raises(CorruptCheckpointError):
        read_all(ledger)
    ledger.begin(2)
    ledger.collect_orphans(2)
    save(ledger, 10, state(10), 3, attempt=2)
    assert ledger.steps() == [5, 10]
    assert_holds(ledger, state(10))


def test_an_element_that_no_piece_holds_is_damage(ledger: Ledger) -> None:
    own = writer(ledger)
    own.save(1, [Slice("gap", "param", (4,), 1, torch.ones(3))])
    own.wait()
    own.close()
    with pytest.raises(CorruptCheckpointError, match="gap has 3 of 4 elements"):
        opened(ledger).tensor("param", "gap")


class ByRange(LocalStorage):
    """Object stores refuse a range that begins behind the end."""

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        if start is not None and start >= self.size(key):
            raise StorageError(f"{key}: the object is shorter than expected")
        return super().read(key, start, end)


def test_a_range_behind_the_end_is_damage(tmp_path: Path) -> None:
    ledger = Ledger(LocalStorage(tmp_path))
    harm(ledger, lambda storage, key: storage.write(key, storage.read(key)[:4]), "rank-00000.bin")
    with pytest.raises(CorruptCheckpointError, match=r"rank-00000\.bin"):
        read_all(Ledger(ByRange(tmp_path)))
    assert ledger.steps() == [5]


@pytest.mark.parametrize("ahead", [False, True])
def test_bits_that_turn_on_the_way_are_no_damage(s3: str, s3_faults: Proxy, ahead: bool) -> None:
    ledger = Ledger(open_storage(f"{s3}/job/checkpoints"))
    save(ledger, 5, state(5), 2)
    s3_faults.faults = [Fault("flip", key=r"rank-\d+\.(bin|json)", method="GET", first=2)]
    checkpoint = opened(ledger)
    assert s3_faults.injected["flip"] == 2
    s3_faults.forget()
    s3_faults.faults = [Fault("flip", key=r"rank-\d+\.bin", method="GET", first=2)]
    found = checkpoint.tensors("param", state(5)) if ahead else {n: checkpoint.tensor("param", n) for n in state(5)}
    assert all(torch.equal(found[name], tensor) for name, tensor in state(5).items())
    assert s3_faults.injected["flip"] == 2
    assert ledger.steps() == [5]


class Unreachable(LocalStorage):
    """Gone for a moment: no reason to give a checkpoint up."""

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        if key.endswith(".bin"):
            raise StorageError("no route to host")
        return super().read(key, start, end)


def test_a_storage_that_is_away_is_not_damage(tmp_path: Path) -> None:
    ledger = Ledger(LocalStorage(tmp_path))
    save(ledger, 5, state())
    with pytest.raises(StorageError, match="no route"):
        read_all(Ledger(Unreachable(tmp_path)))
    assert ledger.steps() == [5]


@pytest.mark.parametrize("content", [b"", b"{}", b"5", b"[]", b"null", b"\xff", b'{"format": "dinoctl.checkpoint/v1"}'])
def test_a_commit_that_can_not_be_read_does_not_count(ledger: Ledger, content: bytes) -> None:
    save(ledger, 5, state(5))
    save(ledger, 10, state(10))
    ledger.storage.write("step-00000010/COMMIT", content)
    assert_holds(ledger, state(5))
    ledger.begin(2)
    ledger.collect_orphans(2)
    save(ledger, 10, state(11), 2, attempt=2)
    assert_holds(ledger, state(11))


def test_a_commit_of_another_step_does_not_count(ledger: Ledger) -> None:
    save(ledger, 5, state(5))
    ledger.storage.write("step-00000010/COMMIT", ledger.storage.read("step-00000005/COMMIT"))
    assert ledger.commit(10) is None
    assert_holds(ledger, state(5))
