"""Asking the buckets that a job needs, before anything is started for it: each refusal is one line with a fix."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dinoctl.data.storage import open_storage
from dinoctl.spec.job import JobSpec

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
