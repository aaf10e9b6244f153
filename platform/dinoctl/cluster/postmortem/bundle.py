"""The post-mortem of one attempt in the job's storage, beside its logs: ``attempts/0003/postmortem.json``.

It holds all that is gone with the cluster: what pods and events said, how the attempt differs from the last one that
got somewhere, its last metrics, and the class of failure with the line that shows it. Logs are read in parallel and
only their ends are kept, so that a thousand ranks fit into little memory.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from dinoctl.cluster.postmortem.classify import judge
from dinoctl.cluster.postmortem.digest import digest_event, digest_pod
from dinoctl.cluster.postmortem.failure import Failure, Kind
from dinoctl.cluster.postmortem.signs import MAX_LINE, Sign, signs
from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.attempts import ATTEMPTS, AttemptStore, LogPosition
from dinoctl.spec.differences import differences

FORMAT = "dinoctl.postmortem/v1"
FILE = "postmortem.json"
_POINTS, _TAIL, _TAILS, _EVENTS, _PODS = 20, 40, 4, 200, 1200
_READERS = 8


@dataclass(frozen=True)
class Case:
    """What the executor still knows when an attempt has ended badly. ``cause`` and ``message`` are its own judgement;
    ``good_attempt`` is the newest earlier attempt that committed a checkpoint or succeeded.
    """

    namespace: str
    job: str
    attempt: int
    storage_uri: str
    cause: str
    message: str
    rayjob: str = ""
    pods: Sequence[dict[str, Any]] = ()
    events: Sequence[dict[str, Any]] = ()
    good_attempt: int | None = None


@dataclass(frozen=True)
class _Log:
    source: str
    signs: list[Sign]
    tail: list[str]


def write_bundle(case: Case) -> tuple[str, Failure]:
    """Writes the bundle; its URI, and the class of failure.

    Raises:
        StorageError: when the storage can't be used now.

    """
    storage = open_storage(case.storage_uri)
    store = AttemptStore(storage, case.attempt)
    with ThreadPoolExecutor(_READERS) as pool:
        logs = list(pool.map(lambda source: _read(store, source), store.sources()))
    outcome = store.outcome()
    failure = judge([sign for log in logs for sign in log.signs], case.pods, case.events, outcome)
    if failure.kind is Kind.UNKNOWN and not failure.line:
        failure = Failure(failure.kind, case.message, "operator", failure.node)
    failure = failure if failure.node else replace(failure, node=_node(store, failure.source))
    document = {
        **_head(case, failure),
        "outcome": asdict(outcome) if outcome else None,
        **_recipe(storage, case),
        "metrics": store.metrics()[-_POINTS:],
        "pods": [digest_pod(pod) for pod in case.pods[:_PODS]],
        "events": [digest_event(event) for event in case.events[-_EVENTS:]],
        "logs": [log.source for log in logs],
        "tails": {log.source: log.tail for log in _telling(logs, failure)},
    }
    at = storage.child(f"{ATTEMPTS}/{case.attempt:04d}")
    at.write(FILE, json.dumps(document, indent=1).encode())
    return f"{at.uri}/{FILE}", failure


def read_bundle(storage: Storage, attempt: int) -> dict[str, Any] | None:
    """None when there is none of this attempt.

    Raises:
        ValueError: when it is damaged, or of another version.

    """
    try:
        document = json.loads(storage.child(f"{ATTEMPTS}/{attempt:04d}").read(FILE))
    except NotFoundError:
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{storage.uri}/{ATTEMPTS}/{attempt:04d}/{FILE} is not a {FORMAT} file")
    return document


def bundled_attempts(storage: Storage) -> list[int]:
    """Attempts that have a bundle, in order."""
    return sorted(
        int(key.split("/")[1])
        for key in storage.list(f"{ATTEMPTS}/")
        if key.endswith(f"/{FILE}") and key.count("/") == 2
    )


def _head(case: Case, failure: Failure) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "namespace": case.namespace,
        "job": case.job,
        "attempt": case.attempt,
        "writtenAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cause": case.cause,
        "message": case.message,
        "failure": {**asdict(failure), "kind": failure.kind.value, "advice": failure.advice},
    }


def _recipe(storage: Storage, case: Case) -> dict[str, Any]:
    """The document that ran, and what was other when it last worked."""
    spec = _spec(storage, case.attempt)
    good = _spec(storage, case.good_attempt) if case.good_attempt is not None else None
    changes = [str(one) for one in differences(good, spec)] if good and spec else []
    return {"spec": spec, "goodAttempt": case.good_attempt if good else None, "changes": changes}


def _spec(storage: Storage, attempt: int) -> dict[str, Any] | None:
    document = AttemptStore(storage, attempt).document()
    return document["spec"] if document else None


def _read(store: AttemptStore, source: str) -> _Log:
    """The end of one log: its last two chunks."""
    chunks = store.log_chunks(source)[-2:]
    data = store.read_log(source, LogPosition(chunks[0]))[0] if chunks else b""
    lines = data.decode(errors="replace").splitlines()
    return _Log(source, signs(source, lines), [line[:MAX_LINE] for line in lines[-_TAIL:]])


def _node(store: AttemptStore, source: str) -> str:
    """Where a rank ran."""
    rank, nodes = source.removeprefix("rank-"), store.nodes()
    return nodes[int(rank)] if rank.isdigit() and int(rank) < len(nodes) else ""


def _telling(logs: Sequence[_Log], failure: Failure) -> list[_Log]:
    """The log that shows the failure, the driver's and the first rank's."""
    wanted = (failure.source, "driver", "rank-00000")
    first = sorted(logs, key=lambda log: wanted.index(log.source) if log.source in wanted else len(wanted))
    return first[:_TAILS]
