"""What a node keeps of buckets fits a budget: who comes makes room, what is used, open or just fetched stays."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from dinoctl.data import node_cache
from dinoctl.data.local import LocalStorage
from dinoctl.data.node_cache import cached, hold

SIZE = 1000


class Shelf:
    """Objects of `SIZE` bytes in a storage, and the cache of them."""

    def __init__(self, root: Path) -> None:
        self.storage, self.files = LocalStorage(root / "bucket"), root / "node" / "files"

    def content(self, name: str) -> bytes:
        return name.encode() * (SIZE // len(name))

    def fetch(self, name: str) -> Path:
        data = self.content(name)
        if not self.storage.exists(name):
            self.storage.write(name, data)
        return cached(self.storage, name, hashlib.sha256(data).hexdigest(), len(data))

    def aged(self, name: str, hours: float) -> Path:
        """Fetched, and asked for so long ago."""
        path = self.fetch(name)
        os.utime(path, (time.time() - hours * 3600,) * 2)
        return path

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.iterdir())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("DINOCTL_CACHE_DIR", str(tmp_path / "node"))
    monkeypatch.setattr(node_cache, "BUDGET", 3 * SIZE)
    return Shelf(tmp_path)


def test_the_least_lately_used_make_room(shelf: Shelf) -> None:
    paths = {name: shelf.aged(name, hours) for name, hours in (("a", 5), ("b", 4), ("c", 3))}
    assert shelf.fetch("a") == paths["a"], "used: not the oldest any more"
    new = shelf.fetch("d")
    assert [path.exists() for path in (paths["a"], paths["b"], paths["c"], new)] == [True, False, True, True]
    assert shelf.fetch("b").read_bytes() == shelf.content("b"), "it comes back when it is wanted"
    assert not paths["c"].exists()
    assert shelf.bytes() == 3 * SIZE


def test_one_that_is_larger_than_the_budget_is_kept_alone(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [shelf.aged(name, 5) for name in "abc"]
    monkeypatch.setattr(node_cache, "BUDGET", SIZE // 2)
    assert shelf.fetch("d").exists()
    assert not any(path.exists() for path in others)


def test_what_was_asked_for_a_moment_ago_stays(shelf: Shelf) -> None:
    """Its process may not have opened it yet."""
    paths = [shelf.fetch(name) for name in "abcde"]
    assert all(path.exists() for path in paths)
    for path in paths:
        os.utime(path, (time.time() - 3600,) * 2)
    shelf.fetch("f")
    assert shelf.bytes() == 3 * SIZE


def test_half_of_the_room_on_the_disk_is_left_to_others(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = shelf.aged("a", 5), shelf.aged("b", 4)
    room = shutil.disk_usage(shelf.files)
    monkeypatch.setattr(node_cache.shutil, "disk_usage", lambda _: room._replace(free=2 * SIZE))
    shelf.fetch("c")
    assert not old.exists()
    assert young.exists(), "two of the four thousand bytes that are free or ours"


def test_what_killed_processes_left_half_written_goes_too(shelf: Shelf) -> None:
    shelf.fetch("a")
    part = shelf.files / "0123.part-of-a-killed-rank"
    part.write_bytes(bytes(2 * SIZE))
    os.utime(part, (time.time() - 3600,) * 2)
    shelf.fetch("b")
    assert not part.exists()
    assert shelf.bytes() == 2 * SIZE


HOLDER = """
import sys
from pathlib import Path
from dinoctl.data.node_cache import hold
with Path(sys.argv[1]).open("rb") as file:
    hold(file.fileno())
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_another_process_has_open_stays_and_the_next_goes(shelf: Shelf) -> None:
    paths = {name: shelf.aged(name, hours) for name, hours in (("a", 5), ("b", 4), ("c", 3))}
    command = [sys.executable, "-c", HOLDER, str(paths["a"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with paths["a"].open("rb") as file:
            hold(file.fileno())  # several may
        shelf.fetch("d")
        assert [path.exists() for path in paths.values()] == [True, False, True]
        holder.stdin.close()
    shelf.fetch("e")
    assert [path.exists() for path in paths.values()] == [False, False, True], "its process has ended"


def test_processes_that_crowd_each_other_out_read_the_right_bytes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of them want five objects where one fits; one that goes before it is opened is fetched again."""
    monkeypatch.setattr(node_cache, "BUDGET", SIZE)
    monkeypatch.setattr(node_cache, "_YOUNG_S", 0.0)
    for name in "abcde":
        shelf.fetch(name)
    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            os._exit(crowd(shelf, seed))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    shelf.fetch("z")
    assert shelf.bytes() == SIZE


def crowd(shelf: Shelf, seed: int) -> int:
    """0 if all was right."""
    try:
        for turn in range(60):
            name = "abcde"[(turn * (seed + 1) + seed) % 5]
            while True:
                try:
                    file = shelf.fetch(name).open("rb")
                    break
                except FileNotFoundError:
                    continue
            with file:
                hold(file.fileno())
                if file.read() != shelf.content(name):
                    return 1
    except BaseException:
        traceback.print_exc()
        return 2
    return 0
