"""One look at the world on behalf of one job, in the order that ``lifecycle.observed`` asks for.

What the watches hold is believed, but for one thing: an attempt whose RayJob they don't hold is asked for once more
before it is called absent, because a cache that lags must not start it twice. Storage is read when an attempt has
ended, between attempts, and at this process's first look at a job; of running ones the workers tell.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dinoctl.cluster.bounded import Bounded
from dinoctl.cluster.edited import edited
from dinoctl.cluster.errors import ApiError, NotFound
from dinoctl.cluster.execution import asked_at, deactivated, eviction, execution, finished, took_machines
from dinoctl.cluster.finalizer import powerless
from dinoctl.cluster.objects import Key, attempt_of, deleting, key_of, owned_by, uid_of
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.resources import RAYJOBS
from dinoctl.cluster.tracking_child import TrackingProblem
from dinoctl.cluster.view import View
from dinoctl.data.errors import StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempts import AttemptStore
from dinoctl.handover.judgement import Champions
from dinoctl.handover.outcome import Outcome
from dinoctl.handover.output import read_evidence
from dinoctl.handover.promotion import compares
from dinoctl.lifecycle import Attempt, AttemptState, Execution, LedgerHead, Observed, ParentView, Phase, Progress
from dinoctl.results import Results, read_results
from dinoctl.spec import names
from dinoctl.spec.errors import EnvironmentProblem, UserError
from dinoctl.spec.resolve import ResolvedJob

Ask = Callable[[ResolvedJob], Champions]
UNREADABLE = (StorageError, TrackingProblem, ValueError, TypeError, KeyError)
"""What reading results ends in when storage or tracking server don't answer, or a file there is damaged."""


@dataclass(frozen=True)
class Look:
    """What was seen, and with it what the lifecycle has no use for. ``rayjob``, ``pods``, ``outcome``: of the live
    attempt. ``asked_at``: since when a controller ought to look at it. ``took``: Kueue has just taken its machines, and
    why; ``deactivated``: it may queue no more. ``unreadable``: why results are unknown.
    """

    observed: Observed = Observed()  # noqa: RUF009 - frozen
    rayjob: Object | None = None
    pods: Sequence[Object] = ()
    outcome: Outcome | None = None
    asked_at: float | None = None
    took: bool = False
    eviction: str = ""
    deactivated: bool = False
    edited: bool = False
    unreadable: str = ""
    run_id: str = ""

    @property
    def execution(self) -> Execution | None:
        """The first is the live attempt's."""
        return self.observed.executions[0] if self.observed.executions else None


@dataclass
class Eyes:
    """Looks."""

    api: Api
    view: View
    bounded: Bounded = field(default_factory=Bounded)
    _known: dict[Key, str] = field(default_factory=dict)

    def look(
        self,
        body: Object,
        record: Record,
        job: ResolvedJob | None,
        parents: Mapping[str, ParentView],
        champions: Ask,
        now: float,
    ) -> Look:
        """See the module. ``job`` is the one that this life began with; ``champions`` asks for who holds its alias."""
        status = record.status
        live = status.live if status else None
        report = self._report(body)
        look = Look(run_id=str(report.get("runId") or ""))
        if live is not None:
            look = self._attempt(look, body, record, live, now)
        executions = [*look.observed.executions, *self._others(body, live, now)]
        results, unreadable = self._results(body, record, job, champions, look.execution)
        results = results and replace(results, head=_latest(results.head, _head(report)))
        observed = Observed(
            parents=parents,
            executions=tuple(executions),
            head=results.head if results else None,
            progress=_progress(report, live),
            output=results.output if results else None,
            evidence=results.evidence if results else None,
            promotion=record.promotion,
            refused=record.refused,
            results_known=results is not None,
            finalized=record.finalized == record.life,
            after=status.revision if status else None,
        )
        return replace(look, observed=observed, unreadable=unreadable or look.unreadable)

    def forget(self, key: Key | None = None) -> None:
        """Looks at storage again, once a job; ``key``: at that of this one, or it is gone."""
        if key is None:
            self._known.clear()
        else:
            self._known.pop(key, None)

    def close(self) -> None:
        """Waits for nobody."""
        self.bounded.close()

    def _attempt(self, look: Look, body: Object, record: Record, live: Attempt, now: float) -> Look:
        key, watched = key_of(body), True
        try:
            rayjob = self._rayjob(body, live)
        except ApiError as error:
            if not powerless(body, error) or live.state is not AttemptState.STOPPING:
                unknown = Execution(live.number, Phase.UNKNOWN, now, message=str(error))
                return replace(look, observed=Observed(executions=(unknown,)), unreadable=str(error))
            rayjob, watched = None, False
        pods = [pod for pod in self.view.pods.of(*key) if attempt_of(pod) == live.number and (watched or deleting(pod))]
        on_record = record.preempted and record.preempted.attempt == live.number and record.preempted.message
        workload = self._workload(body, live) if rayjob or on_record else None
        took = took_machines(rayjob, workload, live)
        outcome = None
        if rayjob is None or took or on_record or finished(rayjob):
            try:
                outcome = self._outcome(record, live)
            except UNREADABLE as error:
                unknown = Execution(live.number, Phase.UNKNOWN, now, message=_told(error))
                blind = Observed(executions=(unknown,))
                return replace(look, observed=blind, rayjob=rayjob, pods=pods, took=took, unreadable=_told(error))
        training = [pod for pod in pods if (pod["metadata"]["labels"]).get(names.ROLE) != "submitter"]
        seen = execution(rayjob, workload, training, outcome, live, now, on_record or None)
        changed = rayjob is not None and edited(rayjob)
        return replace(
            look,
            observed=Observed(executions=(seen,)),
            rayjob=rayjob,
            pods=pods,
            outcome=outcome,
            asked_at=asked_at(rayjob, workload, live) if rayjob else None,
            took=took,
            eviction=eviction(workload),
            deactivated=deactivated(workload),
            edited=changed,
        )

    def _rayjob(self, body: Object, live: Attempt) -> Object | None:
        """Of a job that is going the server is asked: where its namespace goes too, nothing may be watched any more."""
        namespace, name = _rayjob_key(body, live)
        found = self.view.rayjobs.get(namespace, name)
        if found is None or deleting(body):
            try:
                found = self.api.get(RAYJOBS, namespace, name)
            except NotFound:
                return None
        return found if owned_by(found, uid_of(body)) else None

    def _workload(self, body: Object, live: Attempt) -> Object | None:
        """Kueue's. Of a RayJob that had several, the newest."""
        found = self.view.workloads.of(*_rayjob_key(body, live))
        return max(found, key=lambda one: str(one["metadata"].get("creationTimestamp")), default=None)

    def _others(self, body: Object, live: Attempt | None, now: float) -> list[Execution]:
        """RayJobs beside the live attempt's. One that is going already is no stray any more."""
        found = []
        for rayjob in self.view.rayjobs.of(*key_of(body)):
            number = attempt_of(rayjob)
            mine = owned_by(rayjob, uid_of(body)) and not deleting(rayjob)
            if number is None or not mine or (live and number == live.number):
                continue
            phase = Phase.FAILED if finished(rayjob) else Phase.RUNNING
            found.append(Execution(number, phase, now))
        return found

    def _outcome(self, record: Record, live: Attempt) -> Outcome | None:
        """Raises one of UNREADABLE."""
        if not record.storage:
            return None
        return self.bounded(record.storage, lambda: AttemptStore(open_storage(record.storage), live.number).outcome())

    def _results(
        self, body: Object, record: Record, job: ResolvedJob | None, champions: Ask, seen: Execution | None
    ) -> tuple[Results | None, str]:
        """None when nothing is known."""
        if not self._asks_storage(body, record, seen):
            return Results(), ""
        if job is None:
            return None, "the document that this life began with is lost"
        try:
            storage = open_storage(record.storage)
            measured = compares(job) and self.bounded(record.storage, lambda: read_evidence(storage)) is not None
            present = champions(job) if measured else {}
            results = self.bounded(record.storage, lambda: read_results(job, storage, present))
        except UNREADABLE as error:
            return None, _told(error)
        self._known[key_of(body)] = uid_of(body)
        return results, ""

    def _asks_storage(self, body: Object, record: Record, seen: Execution | None) -> bool:
        status = record.status
        if status is None or not record.storage or status.outcome or status.output or status.began_at is None:
            return False
        live = status.live
        if live is None:
            return True
        if seen is None or seen.phase is Phase.UNKNOWN:
            return False
        return not seen.alive or self._known.get(key_of(body)) != uid_of(body)

    def _report(self, body: Object) -> Mapping[str, Any]:
        """What the workers tell."""
        key = key_of(body)
        found = self.view.progress.get(key.namespace, names.progress_name(key.name))
        try:
            report = json.loads(((found or {}).get("data") or {}).get("progress.json", "{}"))
        except ValueError:
            return {}
        mine = found is not None and owned_by(found, uid_of(body))
        return report if mine and isinstance(report, dict) else {}


def _told(error: Exception) -> str:
    """A damaged file's own error says little without its class."""
    return str(error) if isinstance(error, EnvironmentProblem | UserError) else f"{type(error).__name__}: {error}"


def _rayjob_key(body: Object, live: Attempt) -> Key:
    metadata = body["metadata"]
    return Key(metadata["namespace"], names.rayjob_name(metadata["name"], live.spec_hash, live.number))


def _progress(report: Mapping[str, Any], live: Attempt | None) -> Progress | None:
    if live is None or report.get("attempt") != live.number:
        return None
    try:
        return Progress(
            attempt=live.number,
            step=int(report["step"]),
            steps=int(report["steps"]),
            at=float(report["at"]),
            images_per_s=_number(report.get("images_per_s")),
            eta_s=_number(report.get("eta_s")),
            warning=str(report.get("warning") or ""),
            phase=str(report.get("phase") or "train"),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _head(report: Mapping[str, Any]) -> LedgerHead | None:
    try:
        head = report["head"]
        return LedgerHead(int(head["step"]), float(head["at"]), int(head["attempt"]))
    except (KeyError, TypeError, ValueError):
        return None


def _latest(one: LedgerHead | None, other: LedgerHead | None) -> LedgerHead | None:
    found = [head for head in (one, other) if head is not None]
    return max(found, key=lambda head: (head.step, head.at), default=None)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
