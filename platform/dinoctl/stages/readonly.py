"""An attempt whose storage can only be read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dinoctl.data.errors import StorageError
from dinoctl.data.storage import Entry, Storage, open_storage
from dinoctl.handover.attempt import Attempt


class ReadOnly(Storage):
    """A storage that can only be read."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self.uri = storage, storage.uri

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """See Storage."""
        return self._storage.read(key, start, end)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See Storage."""
        return self._storage.entries(prefix)

    def size(self, key: str) -> int:
        """See Storage."""
        return self._storage.size(key)

    def local_path(self, key: str) -> Path | None:
        """See Storage."""
        return self._storage.local_path(key)

    def child(self, name: str) -> Storage:
        """See Storage."""
        return ReadOnly(self._storage.child(name))

    def write_if_absent(self, key: str, data: bytes) -> bool:  # noqa: ARG002
        """Never does: a damaged checkpoint is told of, but not set aside."""
        return False

    def write_chunks(self, key: str, chunks: Iterable[bytes]) -> None:  # noqa: ARG002
        """Refuses."""
        raise StorageError(f"{self.uri}/{key}: a replay writes nothing")

    def delete(self, key: str) -> None:
        """Refuses."""
        raise StorageError(f"{self.uri}/{key}: a replay deletes nothing")

    def delete_prefix(self, prefix: str) -> None:
        """Refuses."""
        self.delete(prefix)

    def sweep(self) -> None:
        """Does nothing."""


@dataclass(frozen=True)
class ReadOnlyAttempt(Attempt):
    """An attempt that leaves the job's storage as it is."""

    @property
    def storage(self) -> Storage:
        """The job's own storage, read-only."""
        return ReadOnly(open_storage(self.storage_uri))
