"""What every storage promises, kept by a directory and by a bucket alike."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Entry, Storage, open_storage


@pytest.fixture(params=["directory", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "directory":
        return open_storage(tmp_path / "new" / "root")
    return open_storage(f"{request.getfixturevalue('s3')}/new/root")


def test_write_and_read_ranges(storage: Storage) -> None:
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 2, 5) == b"234"
    assert storage.read("a/b.bin", 8) == b"89"
    assert storage.read("a/b.bin", 8, 99) == b"89"
    assert storage.read("a/b.bin", 5, 5) == b""
    assert storage.read("a/b.bin", 20, 30) == b""
    assert storage.size("a/b.bin") == 10
    path = storage.local_path("a/b.bin")
    assert path is None or path.read_bytes() == b"0123456789"


def test_empty_objects(storage: Storage) -> None:
    storage.write("empty", b"")
    storage.write_chunks("nothing", ())
    assert storage.read("empty") == storage.read("nothing") == storage.read("empty", 0, 5) == b""
    assert storage.size("empty") == 0
    assert storage.exists("empty")


def test_a_write_replaces(storage: Storage) -> None:
    storage.write("key", b"a longer old content")
    storage.write("key", b"new")
    assert storage.read("key") == b"new"


@pytest.mark.parametrize("size", [0, 1, 16 * 2**20 - 1, 16 * 2**20, 40 * 2**20 + 3])
def test_objects_from_chunks(storage: Storage, size: int) -> None:
    """Below, at and above one part of an upload, in chunks that do not fit parts."""
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    storage.write_chunks("big", (content[at : at + 7_000_001] for at in range(0, size, 7_000_001)))
    assert storage.size("big") == size
    assert storage.read("big") == content
    assert storage.read("big", size // 2, size // 2 + 1000) == content[size // 2 : size // 2 + 1000]


def test_missing_objects(storage: Storage) -> None:
    storage.write("there", b"x")
    for ask in (storage.read, storage.size, lambda key: storage.read(key, 0, 5)):
        with pytest.raises(NotFoundError, match="missing"):
            ask("missing")
    assert not storage.exists("missing")
    storage.delete("missing")


def test_listing_is_sorted_and_by_prefix(storage: Storage) -> None:
    for key in ("b/2", "b/10", "a", "bc"):
        storage.write(key, b"x" * len(key))
    assert list(storage.list()) == ["a", "b/10", "b/2", "bc"]
    assert list(storage.list("b")) == ["b/10", "b/2", "bc"]
    assert list(storage.entries("b/")) == [Entry("b/10", 4), Entry("b/2", 3)]
    assert list(storage.child("b").list()) == ["10", "2"]
    assert list(storage.list("nothing/")) == []


def test_keys_of_any_letters(storage: Storage) -> None:
    keys = sorted(["a b+c", "100%.png", "Köln/straße=1.jpg", "日本/猫.png", "q?x=1&y#z", "'quoted\"", "~tilde(1)"])
    for key in keys:
        storage.write(key, key.encode())
    assert list(storage.list()) == keys
    for key in keys:
        assert storage.read(key) == key.encode()
        assert storage.size(key) == len(key.encode())
    assert list(storage.child("Köln").list()) == ["straße=1.jpg"]
    storage.delete_prefix("")
    assert list(storage.list()) == []


def test_delete(storage: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab"):
        storage.write(key, b"")
    storage.delete("never/was")
    storage.delete_prefix("a/")
    assert list(storage.list()) == ["ab"]
    storage.delete_prefix("a")
    assert list(storage.list()) == []
    assert not storage.exists("ab")


def test_one_of_many_creators_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.write_if_absent("lock", str(i).encode()), range(64)))
    assert sum(won) == 1
    assert storage.read("lock") == str(won.index(True)).encode()
    assert list(storage.list()) == ["lock"]


@pytest.mark.parametrize("parts", [1, 4])
def test_failed_write_leaves_the_old_content(storage: Storage, parts: int) -> None:
    storage.write("key", b"old")

    def broken() -> Iterator[bytes]:
        for _ in range(parts):
            yield bytes(10 * 2**20)
        raise RuntimeError("source failed")

    with pytest.raises(RuntimeError, match="source failed"):
        storage.write_chunks("key", broken())
    assert storage.read("key") == b"old"
    assert list(storage.list()) == ["key"]


def test_a_storage_travels_to_other_processes(storage: Storage) -> None:
    storage.write("key", b"x")
    other = pickle.loads(pickle.dumps(storage))
    assert other.uri == storage.uri
    assert other.read("key") == b"x"


def test_a_place_that_can_be_used(storage: Storage) -> None:
    storage.check(write=False)
    storage.check(write=True)
    assert list(storage.list()) == []
