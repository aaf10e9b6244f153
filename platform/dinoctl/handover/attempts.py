"""What an attempt leaves behind for who looks at it from elsewhere: its processes leave it, executors and users read.

    attempts/0003/claim.json                  created once: a RayJob that is admitted a second time does not run again
    attempts/0003/attempt.json                what it was to do
    attempts/0003/outcome.json, refused.json  how it ended; that somebody started it again
    attempts/0003/result.json                 rank 0's word to the driver
    attempts/0003/error-rank-00002.json       what a rank failed of
    attempts/0003/nodes.json                  where each rank runs
    attempts/0003/logs/rank-00002/000000.log  output; the last chunk grows until it is full
    attempts/0003/metrics.json                the last points

On a cluster this lies in the job's storage, the one place that all its pods share; on one machine in the attempt's
scratch directory (where claim and log are the executor's own affair).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.outcome import KILLED, Outcome, classify, is_echo, telling
from dinoctl.handover.redact import Redactor

ATTEMPTS = "attempts"
_CLAIM, _DOCUMENT, _OUTCOME, _REFUSED = "claim.json", "attempt.json", "outcome.json", "refused.json"
_RESULT, _METRICS, _NODES = "result.json", "metrics.json", "nodes.json"
_ERROR, _LOGS = "error-rank-", "logs/"


class LogPosition(NamedTuple):
    """How far somebody has read a log."""

    chunk: int = 0
    offset: int = 0


class AttemptStore:
    """Attempt ``number`` of the job whose storage is given."""

    def __init__(self, storage: Storage, number: int) -> None:
        self.number, self._at = number, storage.child(f"{ATTEMPTS}/{number:04d}")
        self._hide: Redactor | None = None

    @staticmethod
    def of(attempt: Attempt) -> "AttemptStore":
        """Where this attempt's processes leave what they have to say."""
        store = AttemptStore(attempt.storage, attempt.number)
        if attempt.cluster is None:
            store._at = open_storage(attempt.scratch)
        else:  # others read it: it comes into status, events and post-mortem
            store._hide = Redactor(os.environ, attempt.cluster.secret_env)
        return store

    def claim(self, who: Mapping[str, str]) -> bool:
        """Claims the attempt for good. False: somebody has it, or had it."""
        return self._at.write_if_absent(_CLAIM, json.dumps(dict(who)).encode())

    def claimed(self) -> dict[str, str] | None:
        """Who has claimed it."""
        found: dict[str, str] | None = self._json(_CLAIM)
        return found

    def write_document(self, attempt: Attempt) -> None:
        """Keeps what the attempt was to do, for who compares it with others when its objects are gone."""
        self._at.write(_DOCUMENT, attempt.to_json().encode())

    def document(self) -> dict[str, Any] | None:
        """See ``write_document``."""
        found: dict[str, Any] | None = self._json(_DOCUMENT)
        return found

    def write_outcome(self, outcome: Outcome) -> None:
        """Only for who has the claim."""
        self._write(_OUTCOME, outcome)

    def refuse(self, outcome: Outcome) -> None:
        """For who came second: counts only if the first one never says how it ended."""
        self._write(_REFUSED, outcome)

    def outcome(self) -> Outcome | None:
        """None when the attempt left none: it runs, or was killed. The first run of the attempt has the word before a
        second one; where the driver could say nothing any more, what its ranks said stands.
        """
        return self._outcome(_OUTCOME) or self.result() or self.rank_error() or self._outcome(_REFUSED)

    def write_result(self, outcome: Outcome) -> None:
        """Rank 0's word to the driver."""
        self._write(_RESULT, outcome)

    def result(self) -> Outcome | None:
        """See ``write_result``."""
        return self._outcome(_RESULT)

    def write_rank_error(self, rank: int, error: BaseException, node: str = "") -> None:
        """Leaves a rank's error for the driver, because Ray's wrapping hides its class."""
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):
            # Ray ends the other ranks so when one has failed; it is that one's error that counts.
            self._write(f"{_ERROR}{rank:05d}.json", classify(self.number, error, node))

    def rank_error(self) -> Outcome | None:
        """The telling error of all ranks: one rank's mistake makes the others fail with broken connections."""
        return telling(self.rank_errors().values())

    def rank_errors(self) -> dict[int, Outcome]:
        """Of each rank that could say what it failed of."""
        found = {key: self._outcome(key) for key in self._at.list(_ERROR)}
        return {int(key[len(_ERROR) :].split(".")[0]): outcome for key, outcome in found.items() if outcome}

    def failed(self, error: BaseException) -> Outcome:
        """The driver's, in the words of the rank that failed first. One that was killed could say nothing; of it Ray
        knows.
        """
        told = self.rank_errors()
        said = telling(told.values())
        silent = [rank for rank in getattr(error, "worker_failures", {}) if rank not in told]
        if silent and (said is None or is_echo(said)):
            rank, nodes = min(silent), self.nodes()
            node = nodes[rank] if rank < len(nodes) else ""
            message = f"rank {rank}{node and f' on {node}'} {KILLED}"
            return Outcome(self.number, "failed", "Infrastructure", message, node=node)
        return said or classify(self.number, error)

    def write_nodes(self, nodes: Sequence[str]) -> None:
        """By rank."""
        self._at.write(_NODES, json.dumps(list(nodes)).encode())

    def nodes(self) -> list[str]:
        """See ``write_nodes``; nothing before rank 0 has begun."""
        found: list[str] = self._json(_NODES) or []
        return found

    def write_metrics(self, points: list[dict[str, Any]]) -> None:
        """The last points: step, time, metrics."""
        self._at.write(_METRICS, json.dumps(points).encode())

    def metrics(self) -> list[dict[str, Any]]:
        """See ``write_metrics``; nothing before the first."""
        found: list[dict[str, Any]] = self._json(_METRICS) or []
        return found

    def sources(self) -> list[str]:
        """Whose output there is: ``driver``, ``rank-00000``, ..."""
        return sorted({key.split("/")[1] for key in self._at.list(_LOGS)})

    def log_chunks(self, source: str) -> list[int]:
        """Numbers of the chunks that there are; of a very long log the oldest are gone."""
        prefix = f"{_LOGS}{source}/"
        return [int(key.removeprefix(prefix).removesuffix(".log")) for key in self._at.list(prefix)]

    def write_log(self, source: str, chunk: int, data: bytes) -> None:
        """Stores a chunk, or one that has grown: what was in it stays at its beginning."""
        self._at.write(_log(source, chunk), data)

    def delete_log(self, source: str, chunk: int) -> None:
        """Makes room."""
        self._at.delete(_log(source, chunk))

    def read_log(self, source: str, after: LogPosition) -> tuple[bytes, LogPosition]:
        """What has come since a position, and the new one: for who follows a log."""
        found = []
        for chunk in self.log_chunks(source):
            if chunk < after.chunk:
                continue
            start = after.offset if chunk == after.chunk else 0
            found.append(self._at.read(_log(source, chunk), start))
            after = LogPosition(chunk, start + len(found[-1]))
        return b"".join(found), after

    def logs(self, source: str) -> Iterator[str]:
        """The lines of one source so far. Nothing when there is no such source."""
        for chunk in self.log_chunks(source):  # whole lines each
            yield from self._at.read(_log(source, chunk)).decode(errors="replace").splitlines()

    def _write(self, key: str, outcome: Outcome) -> None:
        if self._hide is not None:
            outcome = replace(outcome, message=self._hide.text(outcome.message))
        self._at.write(key, outcome.to_json().encode())

    def _outcome(self, key: str) -> Outcome | None:
        try:
            return Outcome.from_json(self._at.read(key))
        except NotFoundError:
            return None

    def _json(self, key: str) -> Any:
        try:
            return json.loads(self._at.read(key))
        except NotFoundError:
            return None


def _log(source: str, chunk: int) -> str:
    return f"{_LOGS}{source}/{chunk:06d}.log"
