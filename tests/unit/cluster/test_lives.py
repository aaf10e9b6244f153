"""Where a job without a status goes on: no number that was ever used, nothing of another document."""

from pathlib import Path

import pytest

from dinoctl.cluster.lives import Life, find_life, mark_life
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS, Ledger
from dinoctl.handover.output import Output, write_output


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path)


def claim(storage: Storage, life: str, number: int) -> None:
    AttemptStore(storage.child(life), number).claim({"pod": "p"})


def test_nothing_there(storage: Storage) -> None:
    assert find_life(storage, "hash") == Life(1, 1)


def test_an_attempt_that_never_claimed_was_still_intended(storage: Storage) -> None:
    mark_life(storage, 1, "hash", "uid")
    assert find_life(storage, "hash") == Life(1, 2)


def test_claims_fences_and_outputs_count(storage: Storage) -> None:
    mark_life(storage, 1, "hash", "uid")
    claim(storage, "run-0001", 1)
    claim(storage, "run-0001", 2)
    assert find_life(storage, "hash") == Life(1, 3)
    Ledger(storage.child("run-0001").child(CHECKPOINTS)).begin(5)
    assert find_life(storage, "hash") == Life(1, 6)
    claim(storage, "run-0001", 6)
    assert find_life(storage, "hash") == Life(1, 7)
    write_output(storage.child("run-0001"), Output("pack", "hash", 9, 0, "", {}), None)
    assert find_life(storage, "hash") == Life(1, 10)


def test_another_document_begins_beside_it(storage: Storage) -> None:
    mark_life(storage, 1, "hash", "uid")
    claim(storage, "run-0001", 1)
    assert find_life(storage, "other") == Life(2, 2)
    mark_life(storage, 2, "other", "uid")
    assert find_life(storage, "other") == Life(2, 3)
    assert find_life(storage, "hash") == Life(3, 3)  # only the newest life is gone on with


def test_a_damaged_mark_begins_a_new_life(storage: Storage) -> None:
    storage.write("lives/run-0004.json", b"{")
    assert find_life(storage, "hash") == Life(5, 5)


def test_a_mark_is_written_once(storage: Storage) -> None:
    mark_life(storage, 1, "hash", "uid")
    mark_life(storage, 1, "other", "uid")
    assert find_life(storage, "hash").first_attempt == 1
