"""Writing and reading the slices of checkpoints: every rank writes its own, reading is interval arithmetic over all,
so any world size and any engine can resume (design §5; the layout is in ``handover.ledger``).
"""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import google_crc32c
import torch
from torch import Tensor

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.storage import Storage
from dinoctl.handover.ledger import Commit, Ledger, step_name
from dinoctl.training.engines.base import Slice
from dinoctl.training.manifest import Piece, pieces_from_json, pieces_to_json
from dinoctl.training.read_ahead import ReadAhead, plan
from dinoctl.training.snapshot import Snapshot, SnapshotBuffer
from dinoctl.training.upload import Upload

_ATTEMPTS = 3  # wrong bytes may be the network's fault: read again before calling a checkpoint damaged
_MANIFESTS = 16  # read at once
_POLL_S, _POLL_MAX_S = 0.05, 1.0  # questions to the storage, rarer the longer the answer takes
_TELL_S = 10.0  # between words about an upload that training waits for


class CorruptCheckpointError(OSError):
    """A committed checkpoint can't be read back as written. It has been set aside; the one before counts now."""


class Checkpoint:
    """One committed checkpoint, read piece by piece; every piece's checksum is verified."""

    def __init__(self, storage: Storage, commit: Commit) -> None:
        self.commit, self._storage = commit, storage
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        self._ahead: ReadAhead | None = None
        with ThreadPoolExecutor(_MANIFESTS, thread_name_prefix="manifests") as pool:
            for pieces in pool.map(self._manifest, sorted(commit.manifests)):
                for piece in pieces:
                    self._pieces.setdefault((piece.kind, piece.name), []).append(piece)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.offset)

    def _manifest(self, key: str) -> list[Piece]:
        for _ in range(_ATTEMPTS):
            data = self._guard(lambda: self._storage.read(key))
            if google_crc32c.value(data) == self.commit.manifests[key]:
                return pieces_from_json(data)
        raise self._damaged(f"{key} does not match its checksum")

    def read_ahead(self, wanted: Iterable[Slice]) -> None:
        """Announces what ``read`` will be asked for, in about this order: it is fetched ahead, with few requests."""
        self._expect(piece for one in wanted for piece in self._overlapping(one))

    def close(self) -> None:
        """Fetches nothing ahead any more. Reading goes on to work."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _expect(self, pieces: Iterable[Piece]) -> None:
        self.close()
        if self._storage.local_path("") is None:  # of files the kernel reads ahead, and one copy less is faster
            self._ahead = ReadAhead(self._storage, plan(pieces))

    def _overlapping(self, wanted: Slice) -> Iterator[Piece]:
        pieces = self._pieces.get((wanted.kind, wanted.name), [])
        return _overlaps(pieces, wanted.offset, wanted.offset + wanted.data.numel())

    def names(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Tensor names of a kind with their shapes."""
        return {name: pieces[0].shape for (k, name), pieces in self._pieces.items() if k == kind}

    def read(self, wanted: Slice) -> Tensor:
        """The elements of a slice (flat, host), from whatever pieces hold them.

        Raises:
            ValueError: the checkpoint has no such tensor, or one of another shape.
            CorruptCheckpointError: a piece is missing or differs from what was written.
        """
        pieces = self._pieces.get((wanted.kind, wanted.name))
        if pieces is None or pieces[0].shape != wanted.shape:
            have = f"of shape {pieces[0].shape}" if pieces else "absent"
            raise ValueError(f"{wanted.kind} {wanted.name} of shape {wanted.shape} is {have} in the checkpoint")
        return self._read(pieces, wanted.offset, wanted.data.numel())

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor in its shape."""
        pieces = self._pieces[kind, name]
        shape = pieces[0].shape
        return self._read(pieces, 0, torch.Size(shape).numel()).reshape(shape)

    def tensors(self, kind: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Whole tensors by name, fetched ahead."""
        wanted = list(names)
        self._expect(piece for name in wanted for piece in self._pieces[kind, name])
        try:
            return {name: self.tensor(kind, name) for name in wanted}
        finally:
            self.close()

    def _read(self, pieces: list[Piece], offset: int, length: int) -> Tensor:
        result = torch.empty(length, dtype=getattr(torch, pieces[0].dtype))
        filled = 0
        for piece in _overlaps(pieces, offset, offset + length):
            low, high = max(offset, piece.offset), min(offset + length, piece.offset + piece.length)
            data = self._piece(piece)
            result[low - offset : high - offset] = data[low - piece.offset : high - piece.offset]
            filled += high - low
        if filled != length:
            raise self._damaged(f"{pieces[0].kind} {pieces[0].name} has {filled} of {length} elements")
        return result

    def _piece(self, piece: Piece) -> Tensor:
        end = piece.position + piece.size
        data = self._ahead.take(piece) if self._ahead else None
        for _ in range(_ATTEMPTS):
            if data is None:
                data = self._guard(lambda: self._storage.read(piece.file, piece.position, end), piece.file, end)
            if google_crc32c.value(data) == piece.crc32c:
                return torch.frombuffer(bytearray(data), dtype=getattr(torch, piece.dtype))
            data = None
        raise self._damaged(f"{piece.file} is damaged at {piece.name}")

    def _guard(self, read: Callable[[], bytes], file: str = "", end: int = 0) -> bytes:
        """What is missing, or ends before byte ``end`` of ``file``, is damage; other errors are the storage's."""
        try:
            return read()
        except NotFoundError as error:
            raise self._damaged(str(error)) from None
        except StorageError:
            if not file or self._storage.size(file) >= end:
                raise
            raise self._damaged(f"{file} is shorter than its manifest says") from None

    def _damaged(self, reason: str) -> CorruptCheckpointError:
        """Sets the step aside."""
        step = self.commit.step
        self._storage.write_if_absent(f"{step_name(step)}/CORRUPT", json.dumps({"reason": reason}).encode())
        return CorruptCheckpointError(f"checkpoint of step {step} is damaged and set aside: {reason}")


def _overlaps(pieces: list[Piece], low: int, high: int) -> Iterator[Piece]:
    """Those of ``pieces`` (by offset, none over another) that hold any of the elements [low, high)."""
    first = max(bisect_right(pieces, low, key=lambda piece: piece.offset) - 1, 0)
    for piece in pieces[first:]:
        if piece.offset >= high:
            return
        if piece.offset + piece.length > low:
            yield piece


@dataclass(frozen=True)
class WriterIdentity:
    """Who writes: goes into every COMMIT."""

    attempt: int
    rank: int
    world: int
    spec_hash: str
    run_id: str
    seed: int
    versions: dict[str, str]
    data_hash: str = ""


class LedgerWriter:
    """One rank's writer. ``save`` returns after the copy; files and COMMIT follow in the background."""

    def __init__(
        self,
        ledger: Ledger,
        identity: WriterIdentity,
        *,
        keep: int,
        keep_every: int | None = None,
        names: str = "",
        commit_timeout_s: float = 600.0,
    ) -> None:
        """``names`` goes before the names of this rank's slices."""
        self._ledger, self._me, self._timeout = ledger, identity, commit_timeout_s
        self._keep, self._keep_every, self._names = keep, keep_every, names
        self._buffer = SnapshotBuffer()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._pending: Future[None] | None = None
        self.copy_s = 0.0
        self.wait_s = 0.0
        self.upload: Upload | None = None
        self.last: Upload | None = None
        self.head: Commit | None = None

    def prepare(self, slices: list[Slice]) -> None:
        """Allocates what ``save`` will need for such slices, before training begins."""
        self._buffer.prepare(slices)

    def save(
        self,
        step: int,
        slices: list[Slice],
        *,
        skipped: int = 0,
        behind: Callable[[Upload], None] = lambda _: None,
    ) -> None:
        """Snapshots this rank's slices for ``step``. Waits first if the last checkpoint is not written yet
        (``wait_s`` tells how long, ``behind`` is called with it every 10 seconds), and raises what went wrong with it.
        ``skipped`` of the steps took no effect.

        ``upload`` is the checkpoint on its way, ``last`` the last one that was committed; ``head``, on rank 0, its
        COMMIT, or that of another attempt that was there before.
        """
        began = time.monotonic()
        self.wait(behind)
        copied = time.monotonic()
        snapshot = self._buffer.take([piece.under(self._names) for piece in slices])
        self.wait_s, self.copy_s = copied - began, time.monotonic() - copied
        self.upload = Upload(step, snapshot.size)
        self._pending = self._pool.submit(self._write, step, snapshot, skipped, self.upload)

    def wait(self, behind: Callable[[Upload], None] = lambda _: None) -> None:
        """Returns when everything saved so far is committed; raises what went wrong."""
        if self._pending is not None:
            while not wait([self._pending], timeout=_TELL_S).done and self.upload is not None:
                behind(self.upload)
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Ends the background thread; ``wait`` first to be sure of the last checkpoint."""
        self._pool.shutdown(wait=True)

    def _write(self, step: int, snapshot: Snapshot, skipped: int, upload: Upload) -> None:
        prefix = f"{step_name(step)}/a{self._me.attempt:04d}/rank-{self._me.rank:05d}"
        try:
            pieces = snapshot.write_out(f"{prefix}.bin")
            self._ledger.storage.write_chunks(f"{prefix}.bin", upload.counted(snapshot.chunks()))
            self._ledger.storage.write(f"{prefix}.json", pieces_to_json(pieces))
            if self._me.rank == 0:
                self._commit(step, skipped)
            else:
                self._await_commit(step)
        except StorageError:
            self._ledger.check_fence(self._me.attempt)  # a newer attempt sweeps up what this one was writing
            raise
        upload.end()
        self.last = upload
        if self._me.rank == 0:
            self._retain()

    def _commit(self, step: int, skipped: int) -> None:
        storage, me = self._ledger.storage, self._me
        prefix = f"{step_name(step)}/a{me.attempt:04d}/"
        wanted = [f"{prefix}rank-{rank:05d}.json" for rank in range(me.world)]
        self._poll(lambda: set(wanted) <= set(storage.list(prefix)), f"slices of all {me.world} ranks for step {step}")
        with ThreadPoolExecutor(_MANIFESTS, thread_name_prefix="manifests") as pool:
            found = pool.map(storage.read, wanted)
            manifests = {key: int(google_crc32c.value(data)) for key, data in zip(wanted, found, strict=True)}
        commit = Commit(
            step,
            me.attempt,
            me.world,
            me.spec_hash,
            me.run_id,
            me.seed,
            time.time(),
            manifests,
            me.versions,
            skipped,
            me.data_hash,
        )
        self._ledger.check_fence(me.attempt)
        if self._ledger.create(commit):
            self.head = commit
        elif self._ledger.intact(step, me.spec_hash):
            storage.delete_prefix(prefix)  # an earlier attempt committed this very step: its state is the same one
            self.head = self._ledger.commit(step)
        else:
            self._ledger.replace(commit)
            self.head = commit

    def _await_commit(self, step: int) -> None:
        """All ranks wait, so that a rank that returns from ``wait`` may rely on the checkpoint."""
        own = f"{step_name(step)}/a{self._me.attempt:04d}/rank-{self._me.rank:05d}.json"

        def decided() -> bool:
            """Committed by this attempt; or its slices are gone, because an earlier attempt's commit is good."""
            commit = self._ledger.commit(step)
            return commit is not None and (commit.attempt == self._me.attempt or not self._ledger.storage.exists(own))

        self._poll(decided, f"COMMIT of step {step}")

    def _poll(self, done: Callable[[], bool], what: str) -> None:
        deadline, pause = time.monotonic() + self._timeout, _POLL_S
        while not done():
            self._ledger.check_fence(self._me.attempt)
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self._timeout:g} s for {what}")
            time.sleep(pause)
            pause = min(1.2 * pause, _POLL_MAX_S)

    def _retain(self) -> None:
        """Kept are the newest ``keep``, every ``keep_every``-th, and what others have pinned."""
        steps = self._ledger.steps()
        ours = [s for s in steps if (found := self._ledger.commit(s)) and found.spec_hash == self._me.spec_hash]
        old = [s for s in ours[: -self._keep] if self._keep_every is None or s % self._keep_every]
        if not old:
            return
        pinned = self._ledger.pinned()
        for step in old:
            if step not in pinned:
                self._ledger.remove(step)
