"""Asking the places that a job needs, before anything is started for it: each refusal is one line with a fix."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dinoctl.data.manifest import read_manifest
from dinoctl.data.storage import open_storage
from dinoctl.spec.job import JobSpec, dataset_uris

_REMOTE = "s3://"
_AT_ONCE = 8


def check_storages(outputs: Iterable[str], specs: Iterable[JobSpec]) -> None:
    """Asks every bucket place once: ``outputs`` must be writable, whatever ``specs`` name readable. Directories are
    left to who uses them.

    Raises:
        StorageError: the first that can't be used: what was tried, and what to do. Within some seconds.
    """
    written = dict.fromkeys(uri for uri in outputs if uri.startswith(_REMOTE))
    read = dict.fromkeys(uri for spec in specs for uri in _remote(spec.model_dump(mode="json", exclude={"storage"})))
    asked = [(uri, True) for uri in written] + [(uri, False) for uri in read if uri not in written]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="storages") as pool:
        for done in [pool.submit(open_storage(uri).check, write=write) for uri, write in asked]:
            done.result()


def check_datasets(specs: Iterable[JobSpec], *, outputs: Iterable[str] = ()) -> None:
    """Whether every dataset that ``specs`` name by its place is there, but for those below ``outputs``: they may come.

    Raises:
        DataError: one is missing, or not what it was when it was packed.
        StorageError: one can't be read.
    """
    coming = tuple(f"{open_storage(uri).uri}/" for uri in outputs)
    found = [open_storage(uri) for uri in dict.fromkeys(uri for spec in specs for uri in dataset_uris(spec))]
    asked = [storage for storage in found if not f"{storage.uri}/".startswith(coming)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="datasets") as pool:
        for _ in pool.map(read_manifest, asked):
            pass


def _remote(value: Any) -> Iterator[str]:
    """Every URI of a bucket in a document, wherever it stands."""
    if isinstance(value, str):
        yield from (value,) if value.startswith(_REMOTE) else ()
    elif isinstance(value, dict):
        for part in value.values():
            yield from _remote(part)
    elif isinstance(value, list):
        for part in value:
            yield from _remote(part)
