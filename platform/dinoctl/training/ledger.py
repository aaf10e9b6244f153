"""Writing and reading the slices of checkpoints: every rank writes its own, reading is interval arithmetic over all,
so any world size and any engine can resume (design §5; the layout is in ``handover.ledger``).
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import google_crc32c
import torch
from torch import Tensor

from dinoctl.data.errors import NotFoundError, StorageError
from dinoctl.data.storage import Storage
from dinoctl.handover.ledger import Commit, Ledger, step_name
from dinoctl.training.engines.base import Slice
from dinoctl.training.manifest import Piece, pieces_from_json, pieces_to_json
from dinoctl.training.snapshot import Snapshot, SnapshotBuffer

_POLL_S, _POLL_MAX_S = 0.05, 1.0  # questions to the storage, rarer the longer the answer takes


class CorruptCheckpointError(OSError):
    """A committed checkpoint can't be read back as written. It has been set aside; the one before counts now."""


class Checkpoint:
    """One committed checkpoint, read piece by piece; every piece's checksum is verified."""

    def __init__(self, storage: Storage, commit: Commit) -> None:
        self.commit, self._storage = commit, storage
        self._pieces: dict[tuple[str, str], list[Piece]] = {}
        for manifest, crc in sorted(commit.manifests.items()):
            data = self._guard(lambda key=manifest: storage.read(key))  # type: ignore[misc]
            if google_crc32c.value(data) != crc:
                self._set_aside(f"{manifest} does not match its checksum")
            for piece in pieces_from_json(data):
                self._pieces.setdefault((piece.kind, piece.name), []).append(piece)

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
        pieces = self._pieces[(kind, name)]
        shape = pieces[0].shape
        return self._read(pieces, 0, torch.Size(shape).numel()).reshape(shape)

    def _read(self, pieces: list[Piece], offset: int, length: int) -> Tensor:
        result = torch.empty(length, dtype=getattr(torch, pieces[0].dtype))
        filled = 0
        for piece in pieces:
            low, high = max(offset, piece.offset), min(offset + length, piece.offset + piece.length)
            if low < high:
                data = self._piece(piece)
                result[low - offset : high - offset] = data[low - piece.offset : high - piece.offset]
                filled += high - low
        if filled != length:
            self._set_aside(f"{pieces[0].kind} {pieces[0].name} has {filled} of {length} elements")
        return result

    def _piece(self, piece: Piece) -> Tensor:
        dtype: torch.dtype = getattr(torch, piece.dtype)
        end = piece.position + piece.length * dtype.itemsize
        data = self._guard(lambda: self._storage.read(piece.file, piece.position, end), piece.file, end)
        if google_crc32c.value(data) != piece.crc32c:
            self._set_aside(f"{piece.file} is damaged at {piece.name}")
        return torch.frombuffer(bytearray(data), dtype=dtype)

    def _guard(self, read: Callable[[], bytes], file: str = "", end: int = 0) -> bytes:
        """What is missing, or ends before byte ``end`` of ``file``, is damage; other errors are the storage's."""
        try:
            return read()
        except NotFoundError as error:
            self._set_aside(str(error))
        except StorageError:
            if not file or self._storage.size(file) >= end:
                raise
            self._set_aside(f"{file} is shorter than its manifest says")

    def _set_aside(self, reason: str) -> NoReturn:
        step = self.commit.step
        self._storage.write_if_absent(f"{step_name(step)}/CORRUPT", json.dumps({"reason": reason}).encode())
        raise CorruptCheckpointError(f"checkpoint of step {step} is damaged and set aside: {reason}")


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


class LedgerWriter:
    """One rank's writer. ``save`` returns after the copy; files and COMMIT follow in the background."""

    def __init__(self, ledger: Ledger, identity: WriterIdentity, *, keep: int, commit_timeout_s: float = 600.0) -> None:
        self._ledger, self._me, self._keep, self._timeout = ledger, identity, keep, commit_timeout_s
        self._buffer = SnapshotBuffer()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._pending: Future[None] | None = None
        self.copy_s = 0.0
        self.wait_s = 0.0

    def save(self, step: int, slices: list[Slice], *, skipped: int = 0) -> None:
        """Snapshots this rank's slices for ``step``. Waits first if the last checkpoint is not written yet
        (``wait_s`` tells how long), and raises what went wrong with it. ``skipped`` of the steps took no effect.
        """
        began = time.monotonic()
        self.wait()
        copied = time.monotonic()
        snapshot = self._buffer.take(slices)
        self.wait_s, self.copy_s = copied - began, time.monotonic() - copied
        self._pending = self._pool.submit(self._write, step, snapshot, skipped)

    def wait(self) -> None:
        """Returns when everything saved so far is committed; raises what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Ends the background thread; ``wait`` first to be sure of the last checkpoint."""
        self._pool.shutdown(wait=True)

    def _write(self, step: int, snapshot: Snapshot, skipped: int) -> None:
        prefix = f"{step_name(step)}/a{self._me.attempt:04d}/rank-{self._me.rank:05d}"
        pieces = snapshot.write_out(f"{prefix}.bin")
        self._ledger.storage.write_chunks(f"{prefix}.bin", snapshot.chunks())
        self._ledger.storage.write(f"{prefix}.json", pieces_to_json(pieces))
        if self._me.rank == 0:
            self._commit(step, skipped)
            self._retain()
        else:
            self._await_commit(step)

    def _commit(self, step: int, skipped: int) -> None:
        storage, me = self._ledger.storage, self._me
        prefix = f"{step_name(step)}/a{me.attempt:04d}/"
        wanted = [f"{prefix}rank-{rank:05d}.json" for rank in range(me.world)]
        self._poll(lambda: set(wanted) <= set(storage.list(prefix)), f"slices of all {me.world} ranks for step {step}")
        manifests = {key: int(google_crc32c.value(storage.read(key))) for key in wanted}
        commit = Commit(
            step, me.attempt, me.world, me.spec_hash, me.run_id, me.seed, time.time(), manifests, me.versions, skipped
        )
        self._ledger.check_fence(me.attempt)
        if self._ledger.create(commit):
            return
        if self._ledger.intact(step, me.spec_hash):
            storage.delete_prefix(prefix)  # an earlier attempt committed this very step: its state is the same one
        else:
            self._ledger.replace(commit)

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
        steps = self._ledger.steps()
        ours = [s for s in steps if (found := self._ledger.commit(s)) and found.spec_hash == self._me.spec_hash]
        for step in ours[: -self._keep]:
            self._ledger.remove(step)
