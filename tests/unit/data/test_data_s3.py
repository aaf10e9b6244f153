"""S3 that is slow, overloaded or refuses: requests are tried again for a bounded time, reasons are said in a line."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dinoctl.data import s3_client
from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.s3 import S3Storage
from dinoctl.data.storage import Storage, open_storage
from support.faults import Fault, Proxy
from support.s3server import ACCESS, SECRET, S3Server

BIG = bytes(range(256)) * (36 * 2**12)


@pytest.fixture
def storage(s3: str, s3_faults: Proxy) -> Storage:
    return open_storage(f"{s3}/data")


def unfinished(server: S3Server, bucket: str) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    return [upload["Key"] for upload in found.get("Uploads", ())]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("slowdown", rate=0.3),
        Fault("error", rate=0.3),
        Fault("reset", rate=0.3),
        Fault("truncate", method="GET", rate=0.3),
        Fault("lost-answer", rate=0.3),
        Fault("latency", value=0.05),
        Fault("bandwidth", value=50e6),
    ],
    ids=lambda fault: fault.kind,
)
def test_faults_that_pass_change_nothing(
    storage: Storage, s3: str, s3_faults: Proxy, s3_server: S3Server, fault: Fault
) -> None:
    s3_faults.faults = [fault]
    storage.write("small", b"0123456789")
    storage.write_chunks("big", (BIG[at : at + 2**23] for at in range(0, len(BIG), 2**23)))
    assert storage.write_if_absent("once", b"1")
    assert not storage.write_if_absent("once", b"2")
    assert [storage.read("small", i, i + 3) for i in range(5)] == [b"012", b"123", b"234", b"345", b"456"]
    assert storage.read("big") == BIG
    assert storage.size("big") == len(BIG)
    assert list(storage.list()) == ["big", "once", "small"]
    assert storage.read("once") == b"1"
    assert not storage.exists("nothing")
    storage.delete_prefix("")
    assert list(storage.list()) == []
    storage.sweep()  # an upload whose beginning got lost is nobody's
    assert unfinished(s3_server, s3) == []
    assert s3_faults.injected[fault.kind] > 1 or fault.kind in ("latency", "bandwidth")


@pytest.mark.parametrize("kind", ["reset", "lost-answer", "slowdown"])
def test_a_winner_whose_answer_got_lost_has_won(storage: Storage, s3_faults: Proxy, kind: str) -> None:
    """And a loser with the same content has not."""
    s3_faults.faults = [Fault(kind, method="PUT", first=2)]  # type: ignore[arg-type]
    assert storage.write_if_absent("fence", b"{}")
    s3_faults.faults = [Fault(kind, method="PUT", first=2)]  # type: ignore[arg-type]
    assert not storage.write_if_absent("fence", b"{}")


@pytest.mark.parametrize("kind", ["reset", "lost-answer", "error"])
def test_an_upload_whose_completion_got_lost_is_complete(
    storage: Storage, s3: str, s3_faults: Proxy, s3_server: S3Server, kind: str
) -> None:
    s3_faults.faults = [Fault(kind, key="uploadId=", method="POST", first=2)]  # type: ignore[arg-type]
    storage.write("big", BIG)
    storage.write_chunks("big", [BIG, BIG])
    assert storage.size("big") == 2 * len(BIG)
    assert unfinished(s3_server, s3) == []


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_bits_that_turn_on_the_way_are_noticed(storage: Storage, s3_faults: Proxy, method: str) -> None:
    """By S3's own checksums, for whole objects; ranges have checksums of ours."""
    s3_faults.faults = [Fault("flip", method=method, first=2)]
    storage.write("small", b"0123456789")
    assert storage.read("small") == b"0123456789"
    storage.write_chunks("big", (BIG[at : at + 2**23] for at in range(0, len(BIG), 2**23)))
    s3_faults.faults = ()
    assert b"".join(storage.read("big", at, at + 2**22) for at in range(0, len(BIG), 2**22)) == BIG


def test_a_failed_upload_is_aborted(storage: Storage, s3: str, s3_faults: Proxy, s3_server: S3Server) -> None:
    s3_faults.faults = [Fault("denied", key="partNumber=2", method="PUT")]
    with pytest.raises(StorageError, match=r"cannot write .*data/big: access denied"):
        storage.write_chunks("big", (BIG for _ in range(4)))
    assert unfinished(s3_server, s3) == []
    assert list(storage.list()) == []


def test_unfinished_uploads_are_swept_below_the_root_only(s3: str, s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3.removeprefix("s3://")
    for key in ("data/a", "data/b/c", "database/d"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    open_storage(f"{s3}/data").sweep()
    assert unfinished(s3_server, s3) == ["database/d"]
    open_storage(s3).sweep()
    assert unfinished(s3_server, s3) == []


def test_more_keys_than_a_page(s3: str, s3_server: S3Server) -> None:
    """S3 lists a thousand keys an answer, and deletes as many a request."""
    folder = s3_server.root / s3.removeprefix("s3://") / "data" / "many"
    folder.mkdir(parents=True)
    for number in range(2100):
        (folder / f"{number:05d}").touch()
    storage = open_storage(f"{s3}/data")
    storage.write("other", b"")
    assert list(storage.list("many/")) == [f"many/{number:05d}" for number in range(2100)]
    assert len(list(storage.entries())) == 2101
    storage.delete_prefix("many/")
    assert list(storage.list()) == ["other"]


def test_patience_ends(storage: Storage, s3: str, s3_faults: Proxy) -> None:
    s3_faults.faults = [Fault("slowdown")]
    bucket = s3.removeprefix("s3://")
    s3_client.client()
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"cannot read .*asks for fewer requests"):
        S3Storage(bucket, "data", patience_s=1.0).read("key")
    assert time.monotonic() - began < 3
    assert s3_faults.requests["GET"] > 2


REFUSALS = {
    "missing": "there is no such object",
    "expired": "the credentials have expired; renew them",
    "denied": "access denied; check the credentials' permissions",
    "skew": "this machine's clock is wrong; synchronise it",
    "redirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "malformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals_are_told_at_once_in_one_line(storage: Storage, s3_faults: Proxy, kind: str) -> None:
    s3_faults.faults = [Fault(kind)]  # type: ignore[arg-type]
    began = time.monotonic()
    for name, request in {
        "read": lambda: storage.read("key"),
        "write": lambda: storage.write("key", b"x"),
        "list": lambda: list(storage.list()),
        "delete": lambda: storage.delete("key"),
    }.items():
        with pytest.raises(StorageError) as caught:
            request()
        assert re.match(f"cannot {name} {storage.uri}/.*: {REFUSALS[kind]}", str(caught.value))
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, NotFoundError) == (kind == "missing")
    with pytest.raises(StorageError, match=REFUSALS[kind]):
        storage.size("key")  # HEAD, whose answer has no reason in it
    assert time.monotonic() - began < 10


def test_a_real_server_refuses_in_words(s3: str, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    """Wrong keys, no bucket, no keys, no server: each by a fix."""
    storage = open_storage(f"{s3}/data")
    said = {}
    for name, variables in {
        "key": {"AWS_ACCESS_KEY_ID": "nobody"},
        "secret": {"AWS_SECRET_ACCESS_KEY": "wrong-one"},
        "server": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        "url": {"AWS_ENDPOINT_URL": "nonsense"},
    }.items():
        with monkeypatch.context() as patch:
            for variable, value in variables.items():
                patch.setenv(variable, value)
            said[name] = told(lambda: storage.check(write=True))
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        said["none"] = told(lambda: storage.check(write=True))
    said["bucket"] = told(lambda: open_storage("s3://there-is-no-such-bucket/x").check(write=False))
    said["name"] = told(lambda: open_storage("s3://No_Bucket!/x").check(write=False))
    for name, fix in {
        "key": "check AWS_ACCESS_KEY_ID",
        "secret": "check AWS_SECRET_ACCESS_KEY",
        "server": "check the network and AWS_ENDPOINT_URL",
        "url": "AWS_ENDPOINT_URL",
        "none": "no usable credentials",
        "bucket": "the bucket does not exist",
        "name": "correct the URI",
    }.items():
        assert fix in said[name], said[name]
        assert "\n" not in said[name]
        assert not any(secret in said[name] for secret in (ACCESS, SECRET, "wrong-one"))


def test_a_region_that_the_server_corrects_needs_no_help(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    open_storage(f"{s3}/data").check(write=True)


def told(request: object) -> str:
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        request()  # type: ignore[operator]
    assert time.monotonic() - began < 15
    return str(caught.value)


def test_renewed_credentials_are_read_again(storage: Storage, s3_faults: Proxy) -> None:
    before = s3_client.client()
    s3_faults.faults = [Fault("expired", first=1)]
    storage.write("key", b"x")
    assert s3_client.client() is not before
    assert storage.read("key") == b"x"


def test_a_server_without_conditional_writes_is_found_out(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    client = s3_client.client()
    plain = client.put_object
    monkeypatch.setattr(client, "put_object", lambda IfNoneMatch="", **rest: plain(**rest))  # noqa: N803
    with pytest.raises(StorageError, match="ignores conditional writes"):
        storage.check(write=True)


def test_threads_share_a_client_and_forked_children_do_not(storage: Storage) -> None:
    storage.write("key", b"x" * 1000)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: storage.read("key"), range(200))) == {b"x" * 1000}
        assert len({id(client) for client in pool.map(lambda _: s3_client.client(), range(50))}) == 1
    ours = id(s3_client.client())
    with s3_client._lock:  # as if another thread were just making one
        child = os.fork()
        if not child:
            fine = storage.read("key") == b"x" * 1000 and id(s3_client.client()) != ours
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read("key") == b"x" * 1000


def test_what_is_uploaded_is_held_once_and_a_few_parts(storage: Storage, s3_faults: Proxy) -> None:
    """The source is asked for the next part when there is room for it."""
    asked: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(12):
            asked.append(s3_faults.received)
            yield bytes(2**24)

    s3_faults.faults = [Fault("latency", key="partNumber", value=0.1)]
    storage.write_chunks("big", chunks())
    assert asked[-1] >= 6 * 2**24
    assert storage.size("big") == 12 * 2**24
