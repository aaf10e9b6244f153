"""Metric points that did not reach MLflow before their machine went: their spool file waits in the job's storage, and
whoever comes next in the same life sends them first.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage
from dinoctl.handover.attempts import ATTEMPTS
from dinoctl.tracking.client import connect
from dinoctl.tracking.shipper import Shipped, Shipper
from dinoctl.tracking.spool_files import attempt_files


def keep_spool(storage: Storage, spool: Path, attempt: int) -> None:
    """Stores an attempt's own points."""
    path = attempt_files(spool).get(attempt)
    if path is not None:
        with path.open("rb") as file:
            storage.write_chunks(_key(attempt), iter(lambda: file.read(2**20), b""))


def fetch_spools(storage: Storage, spool: Path, first: int, last: int) -> None:
    """Puts the kept points of attempts ``first`` to ``last`` beside those that are there."""
    spool.mkdir(parents=True, exist_ok=True)
    for attempt in range(first, last + 1):
        path = spool / f"metrics-{attempt}.jsonl"
        try:
            data = None if path.exists() else storage.read(_key(attempt))
        except NotFoundError:
            continue
        if data is not None:
            partial = path.with_suffix(".partial")
            partial.write_bytes(data)
            partial.replace(path)


def ship_kept(uri: str, run_id: str, storage: Storage, first: int, last: int) -> Shipped:
    """Sends what is kept of a life that has ended: nobody comes next."""
    with TemporaryDirectory(prefix="dinoctl-spool-") as place:
        spool = Path(place)
        fetch_spools(storage, spool, first, last)
        return Shipper(spool, lambda: connect(uri), run_id, spool / "shipped.json").ship(final=True)


def _key(attempt: int) -> str:
    return f"{ATTEMPTS}/{attempt:04d}/spool.jsonl"
