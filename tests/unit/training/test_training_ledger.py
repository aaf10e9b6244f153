"""The checkpoint ledger on a local directory, its ranks as threads: any world size reads what any other wrote, only
what is whole counts, and an attempt that was replaced changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinoctl.data.errors import StorageError
from dinoctl.data.local import LocalStorage
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.ledger import Commit, FencedError, Ledger
from dinoctl.training import read_ahead, snapshot
from dinoctl.training.engines.base import Slice
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity
from support.faults import Proxy
from support.s3server import S3Server

WORLDS = (1, 2, 3, 4, 8)
State = dict[str, Tensor]


def state(seed: int = 0, **more: Tensor) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"scalar": (), "vector": (7,), "matrix": (5, 3), "wide": (2, 3, 11)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} | more


def share(name: str, tensor: Tensor, rank: int, world: int) -> Slice:
    flat = tensor.reshape(-1)
    size = -(-flat.numel() // world)
    offset = min(rank * size, flat.numel())
    return Slice(name, "param", tuple(tensor.shape), offset, flat[offset : offset + size])


def shares(tensors: State, rank: int, world: int) -> list[Slice]:
    return [share(name, tensor, rank, world) for name, tensor in tensors.items()]


def me(rank: int = 0, world: int = 1, attempt: int = 1, spec_hash: str = "abc") -> WriterIdentity:
    return WriterIdentity(attempt, rank, world, spec_hash, "run", 7, {"torch": "x"})


def writer(
    ledger: Ledger, *, keep: int = 9, keep_every: int | None = None, timeout: float = 20.0, **who: Any
) -> LedgerWriter:
    return LedgerWriter(ledger, me(**who), keep=keep, keep_every=keep_every, commit_timeout_s=timeout)


def save(ledger: Ledger, step: int, tensors: State, world: int = 1, **options: Any) -> None:
    """Every rank's save and wait, each in a thread of its own; raises the first error."""

    def one(rank: int) -> None:
        own = writer(ledger, rank=rank, world=world, **options)
        try:
            own.save(step, shares(tensors, rank, world))
            own.wait()
        finally:
            own.close()

    with ThreadPoolExecutor(world) as pool:
        for done in [pool.submit(one, rank) for rank in range(world)]:
            done.result()


def opened(ledger: Ledger) -> Checkpoint:
    head = ledger.head()
    assert head is not None
    return Checkpoint(ledger.storage, head)


def assert_holds(ledger: Ledger, tensors: State, worlds: tuple[int, ...] = (1, 3)) -> None:
    checkpoint = opened(ledger)
    assert checkpoint.names("param") == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        torch.testing.assert_close(checkpoint.tensor("param", name), tensor, rtol=0, atol=0, equal_nan=True)
        for world in worlds:
            checkpoint.read_ahead(share(name, torch.empty_like(tensor), rank, world) for rank in range(world))
            pieces = [checkpoint.read(share(name, torch.empty_like(tensor), rank, world)) for rank in range(world)]
            assert torch.equal(torch.cat(pieces).reshape(tensor.shape), tensor), (name, world)


def keys(ledger: Ledger, prefix: str = "") -> list[str]:
    return list(ledger.storage.list(prefix))


@pytest.mark.parametrize("world", WORLDS)
def test_any_world_size_reads_what_any_other_wrote(ledger: Ledger, world: int) -> None:
    tensors = state()
    save(ledger, 5, tensors, world)
    assert_holds(ledger, tensors, WORLDS)
    head = ledger.head()
    assert head is not None
    assert (head.step, head.attempt, head.world, head.spec_hash, head.run_id, head.seed) == (
        5,
        1,
        world,
        "abc",
        "run",
        7,
    )
    assert sorted(head.manifests) == [f"step-00000005/a0001/rank-{rank:05d}.json" for rank in range(world)]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    worlds=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    low=st.integers(0, 40),
    length=st.integers(0, 40),
)
def test_any_interval_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], worlds: tuple[int, int], low: int, length: int
) -> None:
    ledger = Ledger(LocalStorage(tmp_path_factory.mktemp("ledger")))
    tensors = {f"t{i}": torch.arange(size, dtype=torch.float32) + 100 * i for i, size in enumerate(sizes)}
    save(ledger, 1, tensors, worlds[0])
    assert_holds(ledger, tensors, (worlds[1],))
    for name, tensor in tensors.items():
        wanted = tensor[low : low + length]
        found = opened(ledger).read(Slice(name, "param", tuple(tensor.shape), min(low, len(tensor)), wanted))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("world", WORLDS)
def test_any_world_size_resumes_in_pieces_and_spans(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """State as an engine has it (weights, moments, average), cut into many pieces that are fetched a few together."""
    monkeypatch.setattr(snapshot, "PIECE", 256)
    monkeypatch.setattr(read_ahead, "SPAN", 2048)
    monkeypatch.setattr(read_ahead, "GAP", 64)
    monkeypatch.setattr(read_ahead, "AHEAD", 3)
    kinds = ("param", "adam_m", "adam_v", "teacher")
    tensors = {f"{kind}/{i}": torch.randn(size) for kind in kinds for i, size in enumerate((7, 1000, 333, 64))}

    def slices(rank: int, ranks: int) -> list[Slice]:
        every = [(name.split("/")[0], share(name, tensor, rank, ranks)) for name, tensor in tensors.items()]
        return [replace(one, kind=kind) for kind, one in every]

    writers = [writer(ledger, rank=rank, world=world) for rank in range(world)]
    for rank, own in enumerate(writers):
        own.save(5, slices(rank, world))
    for own in writers:
        own.wait()
        own.close()
    for ranks in WORLDS:
        read: dict[str, list[Tensor]] = {name: [] for name in tensors}
        for rank in range(ranks):
            checkpoint = opened(ledger)
            checkpoint.read_ahead(slices(rank, ranks))
            for one in slices(rank, ranks):
                read[one.name].append(checkpoint.read(one))
            checkpoint.close()
        assert all(torch.equal(torch.cat(read[name]), tensor) for name, tensor in tensors.items()), ranks


def test_resuming_takes_few_requests(s3: str, s3_faults: Proxy) -> None:
    """800 tensors of two ranks, 1.6 MB: two manifests and two spans."""
    ledger = Ledger(open_storage(f"{s3}/job/checkpoints"))
    tensors = {f"t{i:03d}": torch.randn(500) for i in range(800)}
    save(ledger, 5, tensors, 2)
    checkpoint = opened(ledger)
    s3_faults.forget()
    checkpoint.read_ahead(shares(tensors, 0, 1))
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(share(name, tensor, 0, 1)), tensor)
    assert s3_faults.requests["GET"] == 2


def test_element_types_of_every_width_stand_side_by_side(ledger: Ledger) -> None:
    odd = [torch.tensor([True]), torch.ones(3, dtype=torch.bfloat16), torch.arange(2), torch.rand(1).double()]
    tensors = {f"t{i}": tensor for i, tensor in enumerate([*odd, torch.rand(3), *odd[::-1]])}
    save(ledger, 1, tensors)
    assert_holds(ledger, tensors, (1,))


def test_unusual_values_are_kept_bit_by_bit(ledger: Ledger) -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4e38])
    save(ledger, 1, {"odd": tensor})
    assert torch.equal(opened(ledger).tensor("param", "odd").view(torch.int32), tensor.view(torch.int32))


def test_large_files_are_written_in_chunks(ledger: Ledger) -> None:
    tensor = torch.arange(5 * 2**20, dtype=torch.int32)
    save(ledger, 1, {"large": tensor}, 2)
    assert_holds(ledger, {"large": tensor})


def test_the_commit_comes_after_all_manifests(ledger: Ledger) -> None:
    tensors, world = state(), 3
    ranks = [writer(ledger, rank=rank, world=world) for rank in range(world)]
    for one in (0, 2):
        ranks[one].save(5, shares(tensors, one, world))
    until(lambda: len(keys(ledger)) == 4)
    time.sleep(0.2)
    assert ledger.steps() == []
    assert ledger.head() is None
    ranks[1].save(5, shares(tensors, 1, world))
    for one in ranks:
        one.wait()
        assert ledger.steps() == [5]
        one.close()
    assert_holds(ledger, tensors)


def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_ranks_that_wait_for_one_that_is_gone_say_for_what(ledger: Ledger) -> None:
    for rank, what in ((0, "slices of all 2 ranks for step 5"), (1, "COMMIT of step 5")):
        own = writer(ledger, rank=rank, world=2, timeout=0.1)
        own.save(5, [share("t", torch.ones(4), rank, 2)])
        if rank == 1:
            ledger.storage.delete_prefix("step-00000005/a0001/rank-00000")
        with pytest.raises(TimeoutError, match=f"waited 0.1 s for {what}"):
            own.wait()
        own.close()
    assert ledger.steps() == []


def fail(storage: Storage, at: str) -> None:
    """From now on the storage fails before a key that ends in ``at`` is written."""
    write_chunks, write_if_absent = storage.write_chunks, storage.write_if_absent

    def guarded(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(key: str, *rest: Any) -> Any:
            if key.endswith(at):
                raise StorageError(f"power cut before {key}")
            return write(key, *rest)

        return call

    storage.write_chunks = guarded(write_chunks)  # type: ignore[method-assign]
    storage.write_if_absent = guarded(write_if_absent)  # type: ignore[method-assign]


@pytest.mark.parametrize("at", [".bin", ".json", "COMMIT"])
def test_a_crash_before_the_commit_leaves_no_step(ledger: Ledger, at: str) -> None:
    save(ledger, 5, state(0))
    broken = open_storage(ledger.storage.uri)
    fail(broken, at)
    with pytest.raises(StorageError, match="power cut"):
        save(Ledger(broken), 10, state(1))
    assert ledger.steps() == [5]
    ledger.begin(2)
    ledger.collect_orphans(2)
    assert keys(ledger, "step-00000010") == []
    save(ledger, 10, state(2), attempt=2)
    assert ledger.steps() == [5, 10]
    assert_holds(ledger, state(2))


def test_an_attempt_that_was_replaced_can_not_commit(ledger: Ledger) -> None:
    ledger.begin(1)
    save(ledger, 5, state(0), attempt=1)
    ledger.begin(2)
    save(ledger, 10, state(1), attempt=2)
    before = {key: ledger.storage.read(key) for key in keys(ledger) if not key.startswith("step-00000015")}
    with pytest.raises(FencedError, match="attempt 1 was replaced by attempt 2"):
        save(ledger, 15, state(2), attempt=1)
    with pytest.raises(FencedError):
        ledger.begin(1)
    after = {key: ledger.storage.read(key) for key in keys(ledger) if not key.startswith("step-00000015")}
    assert after == before
    assert ledger.steps() == [5, 10]
    ledger.begin(2)  # again: after a crash between the fence and the first step
    assert_holds(ledger, state(1))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_attempt_that_is_replaced_while_it_waits_ends(ledger: Ledger, rank: int) -> None:
    ledger.begin(1)
    own = writer(ledger, rank=rank, world=2, attempt=1)
    own.save(5, shares(state(), rank, 2))
    ledger.begin(2)
    with pytest.raises(FencedError):
        own.wait()
    own.close()


@pytest.mark.parametrize("winner", [1, 2])
def test_attempts_that_overlap_on_a_step_never_mix(ledger: Ledger, winner: int) -> None:
    """The old attempt's rank 1 is still writing when the new one is already at the same step."""
    old, new = state(1), state(2)
    ledger.begin(1)
    late = writer(ledger, rank=1, world=2, attempt=1)
    if winner == 1:
        save(ledger, 5, old, 2, attempt=1)
        ledger.begin(2)
    else:
        ledger.begin(2)
        late.save(5, shares(old, 1, 2))
    save(ledger, 5, new, 2, attempt=2)
    if winner == 2:
        with pytest.raises(FencedError):
            late.wait()
    late.close()
    assert_holds(ledger, old if winner == 1 else new)
    assert opened(ledger).commit.attempt == winner
    assert {key.split("/")[1] for key in opened(ledger).commit.manifests} == {f"a000{winner}"}
    if winner == 1:
        assert not keys(ledger, "step-00000005/a0002/"), "the loser's slices are gone"


def test_commit_round_trip() -> None:
    commit = Commit(3, 2, 4, "h", "r", 1, 12.5, {"a": 1}, {"torch": "2"})
    assert Commit.from_json(commit.to_json()) == commit
    with pytest.raises(ValueError, match=r"not a dinoctl\.checkpoint/v1"):
        Commit.from_json(b"{}")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_retention_keeps_the_newest(ledger: Ledger, keep: int) -> None:
    own = writer(ledger, keep=keep)
    for step in (5, 10, 15, 20):
        own.save(step, shares(state(step), 0, 1))
    own.wait()
    own.close()
    assert ledger.steps() == [5, 10, 15, 20][-keep:]
    assert {key.split("/")[0] for key in keys(ledger, "step-")} == {f"step-{step:08d}" for step in ledger.steps()}
    assert_holds(ledger, state(20))


def test_retention_keeps_every_so_many_steps_for_good(ledger: Ledger) -> None:
    own = writer(ledger, keep=1, keep_every=10)
    for step in (5, 10, 15, 20, 25):
        own.save(step, shares(state(step), 0, 1))
    own.wait()
    own.close()
    assert ledger.steps() == [10, 20, 25]
    assert_holds(ledger, state(25))


def test_retention_keeps_what_others_refer_to(ledger: Ledger) -> None:
    """A child that starts from step 5, a registered version of step 10; the newest count besides."""
    own = writer(ledger, keep=2)
    for step in (5, 10):
        own.save(step, shares(state(step), 0, 1))
        own.wait()
        assert ledger.pin(step, "models:/m/1" if step == 10 else "child")
    for step in (15, 20, 25, 30):
        own.save(step, shares(state(step), 0, 1))
    own.wait()
    own.close()
    assert ledger.steps() == [5, 10, 25, 30]
    assert ledger.pinned() == {5, 10}
    assert (ledger.pinned("child"), ledger.pinned("models:/m/1"), ledger.pinned("nobody")) == ({5}, {10}, set())
    commit = ledger.commit(5)
    assert commit is not None
    kept = Checkpoint(ledger.storage, commit)
    assert all(torch.equal(kept.tensor("param", name), value) for name, value in state(5).items())
    ledger.begin(2)
    ledger.collect_orphans(2)
    assert ledger.steps() == [5, 10, 25, 30], "nor are they anybody's orphans"


def test_what_is_gone_can_not_be_pinned(ledger: Ledger) -> None:
    save(ledger, 5, state())
    assert not ledger.pin(10, "child")
    assert ledger.pinned() == set()


def test_what_a_killed_writer_left_half_written_goes(s3: str, s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3.removeprefix("s3://")
    client.create_multipart_upload(Bucket=bucket, Key="job/checkpoints/step-00000005/a0001/rank-00000.bin")
    ledger = Ledger(open_storage(f"{s3}/job/checkpoints"))
    ledger.begin(2)
    ledger.collect_orphans(2)
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_orphans_are_uncommitted_slices_of_older_attempts(ledger: Ledger) -> None:
    save(ledger, 5, state(5), 2, attempt=1)
    for key in ("step-00000005/a0002", "step-00000010/a0001", "step-00000010/a0003", "step-00000015/a0004"):
        ledger.storage.write(f"{key}/rank-00000.bin", b"x")
    ledger.collect_orphans(3)
    left = {key.rsplit("/", 1)[0] for key in keys(ledger, "step-") if key.endswith(".bin")}
    assert left == {"step-00000005/a0001", "step-00000010/a0003", "step-00000015/a0004"}
    assert_holds(ledger, state(5))


def test_only_checkpoints_of_the_same_spec_are_resumed(ledger: Ledger) -> None:
    save(ledger, 5, state(5), spec_hash="one")
    save(ledger, 10, state(10), spec_hash="two")
    heads = [ledger.head(spec_hash) for spec_hash in ("one", "two", "three", None)]
    assert [head and head.step for head in heads] == [5, 10, None, 10]
    save(ledger, 10, state(11), spec_hash="one", attempt=2)
    head = ledger.head("one")
    assert head is not None
    assert head.step == 10, "another spec's checkpoint of the same step gives way"
    assert_holds(ledger, state(11))


def test_what_is_not_in_the_checkpoint_is_named(ledger: Ledger) -> None:
    save(ledger, 5, state())
    checkpoint = opened(ledger)
    with pytest.raises(ValueError, match=r"^param other of shape \(2,\) is absent in the checkpoint$"):
        checkpoint.read(Slice("other", "param", (2,), 0, torch.empty(2)))
    with pytest.raises(ValueError, match=r"^teacher vector of shape \(7,\) is absent"):
        checkpoint.read(Slice("vector", "teacher", (7,), 0, torch.empty(7)))
    with pytest.raises(ValueError, match=r"^param matrix of shape \(15,\) is of shape \(5, 3\) in the checkpoint$"):
        checkpoint.read(Slice("matrix", "param", (15,), 0, torch.empty(15)))
    assert ledger.steps() == [5], "a question too much is no damage"


def slow_down(storage: Storage, seconds: float) -> None:
    """From now on slices are written ``seconds`` later."""
    write_chunks = storage.write_chunks

    def call(key: str, chunks: Any) -> None:
        if key.endswith(".bin"):
            time.sleep(seconds)
        write_chunks(key, chunks)

    storage.write_chunks = call  # type: ignore[method-assign]


def test_training_goes_on_while_a_snapshot_is_written(ledger: Ledger) -> None:
    slow_down(ledger.storage, 0.5)
    tensors, wanted = state(1), state(1)
    own = writer(ledger)
    own.save(5, shares(tensors, 0, 1))
    assert own.wait_s < 0.2
    assert own.copy_s < 0.2
    for tensor in tensors.values():
        tensor.fill_(9.0)
    assert ledger.steps() == []
    own.wait()
    assert_holds(ledger, wanted)
    own.close()


def test_the_next_snapshot_waits_for_the_one_before(ledger: Ledger) -> None:
    """The buffer is used again, so it may not change under the writer."""
    slow_down(ledger.storage, 0.3)
    own = writer(ledger)
    own.save(5, shares(state(5), 0, 1))
    own.save(10, shares(state(10), 0, 1))
    assert own.wait_s > 0.2
    assert own.copy_s < 0.2
    assert_holds(ledger, state(5))
    own.wait()
    assert_holds(ledger, state(10))
    own.close()


def test_errors_of_the_background_come_up_once_at_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "step-00000005").write_text("a file in place of the directory")
    own = writer(Ledger(LocalStorage(tmp_path)))
    own.save(5, shares(state(), 0, 1))
    with pytest.raises(StorageError, match="cannot write"):
        own.save(10, shares(state(), 0, 1))
    own.save(15, shares(state(), 0, 1))
    own.wait()
    own.save(5, shares(state(), 0, 1))
    with pytest.raises(StorageError, match="cannot write"):
        own.wait()
    own.wait()
    own.close()
    assert Ledger(LocalStorage(tmp_path)).steps() == [15]


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from dinoctl.data.errors import StorageError
from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.engines.base import Slice
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
me = WriterIdentity(1, 0, 1, "", "", 0, {})
writer = LedgerWriter(Ledger(LocalStorage(Path(sys.argv[1]))), me, keep=2)
small, large = [Slice("t", "param", (n,), 0, torch.ones(n)) for n in (100, 100_000)]
writer.save(5, [small])
writer.save(10, [large])
try:
    writer.wait()
except StorageError as error:
    print(error)
writer.close()
"""


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "File too large" in done.stdout
    assert "make room" in done.stdout
    ledger = Ledger(LocalStorage(tmp_path))
    assert ledger.steps() == [5]
    assert not list(tmp_path.rglob(".tmp-*")), "half a file is no file"
    assert torch.equal(opened(ledger).tensor("param", "t"), torch.ones(100))
