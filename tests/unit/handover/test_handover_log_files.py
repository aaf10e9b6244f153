"""Output on its way to the storage: whole lines, without secrets, bounded, and nothing lost by an outage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinoctl.data.errors import StorageError
from dinoctl.data.local import LocalStorage
from dinoctl.handover import log_files
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.log_files import GrowingFile, LogWriter
from dinoctl.handover.redact import Redactor

HIDDEN = [
    ({"AWS_SECRET_ACCESS_KEY": "abcd1234efgh"}, "key abcd1234efgh!", "key ***!"),
    ({"MLFLOW_TRACKING_PASSWORD": "pass-word-1"}, "pass-word-1", "***"),
    ({"RAY_AUTH_TOKEN": "0123456789", "HF_TOKEN": "012345678901"}, "012345678901 0123456789", "*** ***"),
    ({}, "s3://user:hunter2@host/bucket", "s3://***@host/bucket"),
    ({}, "Authorization: Bearer abc.def", "Authorization: Bearer ***"),
    ({}, "token eyJhbGciOi.eyJpc3MiOi.c2lnbmF0dXJl end", "token *** end"),
    ({"TEAM_NOTE": "shared"}, "a shared note", "a *** note"),  # named by the profile
    ({"OMP_KEY": "4"}, "step 4 of 40", "step 4 of 40"),  # too short to be a secret
    ({"RAY_AUTH_TOKEN_PATH": "/run/secrets/token"}, "/run/secrets/token", "/run/secrets/token"),
]


@pytest.mark.parametrize(("environ", "text", "left"), HIDDEN)
def test_secrets_stay_out(environ: dict[str, str], text: str, left: str) -> None:
    assert Redactor(environ, ["TEAM_NOTE"])(text.encode()).decode() == left


def test_lines_come_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = GrowingFile(path)
    assert file.read() == b""
    with path.open("ab") as writer:
        for piece, seen in [(b"one\ntw", b"one\n"), (b"o", b""), (b"\n", b"two\n"), (b"rest", b"")]:
            writer.write(piece)
            writer.flush()
            assert file.read() == seen
    assert file.read(last=True) == b"rest"
    assert file.read(last=True) == b""


def test_a_line_without_end_does_not_wait_for_ever(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 100_000)
    assert len(GrowingFile(tmp_path / "log").read()) == 100_000


def test_a_long_file_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_FILE", 1000)
    path = tmp_path / "log"
    file = GrowingFile(path)
    writer = os.open(path, os.O_WRONLY | os.O_APPEND)
    seen = b""
    for number in range(300):
        os.write(writer, f"line {number}\n".encode())
        seen += file.read()
        assert path.stat().st_size <= 1010
    os.close(writer)
    assert seen == b"".join(f"line {number}\n".encode() for number in range(300))


def test_who_writes_too_fast_loses_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_FILE", 1000)
    monkeypatch.setattr(log_files, "_READ", 100)
    path = tmp_path / "log"
    file = GrowingFile(path)
    path.write_bytes(b"".join(b"line %04d\n" % number for number in range(500)))
    seen = b""
    while data := file.read(last=True):
        seen += data
    assert seen.startswith(b"... 4900 bytes of output left out ...\n")
    assert seen.endswith(b"line 0499\n")
    assert len(seen) < 200


class Failing(LocalStorage):
    down = False

    def child(self, name: str) -> Failing:
        return Failing(self.root / name)

    def write(self, key: str, data: bytes) -> None:
        if Failing.down:
            raise StorageError("down")
        super().write(key, data)


def test_chunks_grow_and_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "CHUNK", 100)
    storage = Failing(tmp_path)
    store = AttemptStore(storage, 1)
    writer = LogWriter(store, "driver")
    lines = [f"line {number:03d}" for number in range(60)]
    for number, line in enumerate(lines):
        Failing.down = 10 <= number < 40
        writer.add(f"{line}\n".encode())
        if Failing.down:
            with pytest.raises(StorageError):
                writer.flush()
        else:
            writer.flush()
            assert list(store.logs("driver")) == lines[: number + 1]
    sizes = [entry.size for entry in storage.entries("attempts/0001/logs/driver/")]
    assert sizes[:-1] == [99] * (len(sizes) - 1)
    again = LogWriter(store, "driver")
    again.add(b"a second process\n")
    again.flush()
    assert list(store.logs("driver"))[-2:] == [lines[-1], "a second process"]


def test_a_very_long_log_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "CHUNK", 10)
    monkeypatch.setattr(log_files, "_KEPT", 3)
    store = AttemptStore(LocalStorage(tmp_path), 1)
    writer = LogWriter(store, "driver")
    for number in range(20):
        writer.add(b"line %04d\n" % number)
        writer.flush()
    assert list(store.logs("driver")) == [f"line {number:04d}" for number in (17, 18, 19)]
