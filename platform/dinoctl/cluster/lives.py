"""A job's lives in its storage: ``PREFIX/NAMESPACE/NAME/run-0004/`` and a mark ``lives/run-0004.json`` for each.

A status can be lost (an object deleted by mistake and made again, a backup without status), so a job that is new to the
API server looks here first. With the same resolved spec it goes on where the last life stood, since the same spec gives
the same result; with another one it begins a life beside it. Either way its attempts get numbers beyond all that were
ever used, because an attempt of the old object may still be writing, and the ledger fences by number.
"""

import json
from dataclasses import dataclass

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.ledger import CHECKPOINTS
from dinoctl.handover.output import read_output
from dinoctl.handover.runs import life_name

_MARKS = "lives/"


@dataclass(frozen=True)
class Life:
    """Where to go on: number of its first attempt, and of the next one."""

    first_attempt: int = 1
    next_attempt: int = 1


def find_life(job_storage: Storage, spec_hash: str) -> Life:
    """The life that a job without a status is in.

    Raises:
        StorageError: nobody can tell.
    """
    marks = list(job_storage.list(_MARKS))
    if not marks:
        return Life()
    found = _read(job_storage, marks[-1])
    first = int(marks[-1].removeprefix(f"{_MARKS}run-").removesuffix(".json"))
    following = _newest(job_storage.child(life_name(first)), first) + 1
    return Life(first if found.get("specHash") == spec_hash else following, following)


def mark_life(job_storage: Storage, first_attempt: int, spec_hash: str, uid: str) -> None:
    """Before its first attempt starts."""
    content = json.dumps({"specHash": spec_hash, "uid": uid}).encode()
    job_storage.write_if_absent(f"{_MARKS}{life_name(first_attempt)}.json", content)


def _read(storage: Storage, key: str) -> dict[str, str]:
    try:
        found = json.loads(storage.read(key))
    except (NotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _newest(storage: Storage, first: int) -> int:
    """The highest number that an attempt of a life is known to have had."""
    fences = [int(key.rsplit("/", 1)[-1]) for key in storage.list(f"{CHECKPOINTS}/fence/")]
    output = read_output(storage)
    newest = max([first, *fences, *([output.attempt] if output else [])])
    while AttemptStore(storage, newest + 1).claimed() is not None:
        newest += 1
    return newest
