"""One round of work on one job: look, decide, remember, act."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dinoctl.cluster import finalizer
from dinoctl.cluster.act import Held, storage_of
from dinoctl.cluster.errors import Conflict, Forbidden, Invalid
from dinoctl.cluster.events import Happening, happenings, troubled
from dinoctl.cluster.failures import ended
from dinoctl.cluster.family import see_parents
from dinoctl.cluster.lives import find_life
from dinoctl.cluster.objects import condition, deleting, uid_of
from dinoctl.cluster.observe import UNREADABLE, Look
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.remember import at_work, begins, held, remember, starting
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.cluster.status import Picture, Trouble, merge_patch, status_of
from dinoctl.cluster.timing import next_look, only_progress
from dinoctl.cluster.tools import Tools
from dinoctl.cluster.tracking_child import Tracking, TrackingProblem
from dinoctl.cluster.wishes import job_of, read_wishes, withheld
from dinoctl.data.errors import DataError, StorageError
from dinoctl.data.storage import open_storage
from dinoctl.handover.judgement import Champions
from dinoctl.handover.runs import RunKey, life_key, life_name, run_key
from dinoctl.lifecycle import (
    Action,
    ConditionType,
    Decision,
    Finalize,
    Job,
    ParentView,
    Promote,
    Promotion,
    StartAttempt,
    Status,
    StopAttempt,
    Wait,
    decide,
    restart,
)
from dinoctl.results import read_results
from dinoctl.spec import names
from dinoctl.spec.resolve import ResolvedJob

EDITED = "somebody changed its RayJob"
_AGAIN_S = 30.0
"""Between two tries of what only somebody else can mend."""
_SOON_S = 0.2


class Round:
    """``record`` is what the object remembers, and after ``run`` what it remembers then."""

    def __init__(self, tools: Tools, body: Object, record: Record, now: float) -> None:
        self._tools, self._body, self.record, self._now = tools, body, record, now
        self._namespace: str = body["metadata"]["namespace"]
        self._newest = False  # the object is known to be the newest
        self._wishes = read_wishes(body, record, tools.documents(self._namespace), tools.config)
        self._trouble = self._wishes.trouble
        self._look = Look()
        self._parents: Mapping[str, ParentView] = {}

    def run(self) -> float | None:
        """See ``Reconciler.reconcile``."""
        if self._trouble is not None and not self.record.begun and not self._wishes.cancel:
            self._save(self.record)
            return None  # whoever mends it, wakes us
        self._trouble = self._trouble or withheld(self.record, self._wishes)
        job = job_of(self._body, self.record, self._wishes)
        record = self._restarted(job)
        self._parents = see_parents(self._tools.view, self._namespace, job)
        of_life = self._wishes.of_life(record.status)
        self._look = self._tools.eyes.look(self._body, record, of_life, self._parents, self._champions, self._now)
        if self._look.unreadable and self._trouble is None:
            what = self._look.unreadable
            self._trouble = Trouble(ConditionType.HEALTHY, "ResultsUnreadable", what, "Unknown", "Unknown")
        decision = decide(job, record.status, self._look.observed, self._now)
        if begins(record.status, decision.status):
            found = self._life(record, job)
            if found is None:
                self._save(self.record)
                return _AGAIN_S
            record, decision = found
        view, status = self._tools.view, decision.status
        after = remember(view, self._namespace, self.record, record, status, self._look, self._wishes)
        return self._proceed(after, decision.actions, job)

    def _proceed(self, after: Record, actions: Sequence[Action], job: Job) -> float:
        before, took = self.record, self._look.took
        effects = [action for action in actions if not isinstance(action, Wait)]
        if any(isinstance(action, StartAttempt) for action in effects):
            self._trouble = self._trouble or held(self._body)
            self._body = finalizer.put(self._tools.api, self._tools.view, self._body)
        self._save(after, lazily=not (effects or took or after.deactivated != before.deactivated))
        waits = [wait for action in effects if (wait := self._act(action)) is not None]
        if took and after.preempted:  # before Kueue admits it again: an attempt runs once
            self._confirm()
            self._tools.hands.stop(self._body, after, after.preempted.attempt, force=False)
        if not effects:
            self._restore()
        if ended(before, after) and not deleting(self._body):  # else all of them go
            self._tools.hands.tidy(self._body, after, self._tools.config.keep_attempts)
        self._tools.reports.want(self._body, self.record, self._look.pods)
        return min([*waits, next_look(job, self.record.status, self._look, self._now, self._tools.config.resync)])

    # -- what is remembered -------------------------------------------------------------------------------------

    def _restarted(self, job: Job) -> Record:
        """A new life for a job whose last attempt has ended, if one was asked for."""
        record, status, wishes = self.record, self.record.status, self._wishes
        if not wishes.restart or (status and status.live) or wishes.job is None or wishes.profile is None:
            return record
        if deleting(self._body):
            return record
        if status is None or not (record.begun or status.outcome):
            return replace(record, restart=wishes.restart)
        if record.begun and record.finalized != record.life:
            self._close(complete=False)
        new = restart(status, job)
        storage = f"{storage_of(self._body, wishes.job, wishes.profile)}/{life_name(new.first_attempt)}"
        return Record(new, storage, restart=wishes.restart)

    def _life(self, record: Record, job: Job) -> tuple[Record, Decision] | None:
        """A first attempt is about to begin: how does storage stand? None when nobody can tell."""
        resolved, profile, observed = self._wishes.job, self._wishes.profile, self._look.observed
        assert resolved is not None and profile is not None  # noqa: S101, PT018 - else nothing begins
        base, bounded = storage_of(self._body, resolved, profile), self._tools.eyes.bounded
        try:
            life = bounded(base, lambda: find_life(open_storage(base), job.spec_hash))
            storage = f"{base}/{life_name(life.first_attempt)}"
            if life.first_attempt < life.next_attempt:
                champions = self._champions(resolved)
                found = bounded(base, lambda: read_results(resolved, open_storage(storage), champions))
                observed = replace(observed, head=found.head, output=found.output, evidence=found.evidence)
        except UNREADABLE as error:
            self._trouble = Trouble(ConditionType.ADMITTED, names.STORAGE_UNREADABLE, str(error))
            return None
        start = record.status or Status(job.spec_hash)
        start = replace(start, first_attempt=life.first_attempt, next_attempt=life.next_attempt)
        record = replace(record, status=start, storage=storage)
        return record, decide(job, start, replace(observed, after=start.revision), self._now)

    def _save(self, after: Record, *, lazily: bool = False) -> None:
        """Compare and set. What says nothing new isn't written, and what only counts steps waits its turn."""
        wishes, look, before = self._wishes, self._look, self.record
        picture = Picture(
            self._body,
            after,
            wishes.job or wishes.begun,
            wishes.profile,
            self._parents,
            look.execution,
            self._trouble,
            EDITED if look.edited else "",
            wishes.profile_name,
        )
        patch = merge_patch(self._body.get("status") or {}, status_of(picture, self._now))
        told_of_edit = EDITED in str((self._body.get("status") or {}).get("message"))
        if not patch or (lazily and look.edited == told_of_edit and only_progress(before.status, after.status, patch)):
            return
        told = condition(self._body, self._trouble.condition).get("message") if self._trouble else ""
        self._write(patch)
        self.record = after
        for what in happenings(before, after):
            self._say(what)
        if self._trouble and self._trouble.message != told:
            self._say(troubled(self._trouble))
        if look.edited and not told_of_edit:
            said = f"{EDITED}; KubeRay ignores most changes, and the next attempt is made from the document again"
            self._say(Happening("RayJobEdited", said, warning=True, key=str(look.rayjob and uid_of(look.rayjob))))

    def _write(self, patch: Mapping[str, Any]) -> None:
        metadata = self._body["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        self._body = self._tools.api.patch(DINOJOBS, self._namespace, metadata["name"], body, subresource="status")
        self._tools.view.jobs.observe(self._body)
        self._newest = True

    def _confirm(self) -> None:
        """Before anything is done without having written: on the word of an old object it could be the wrong thing."""
        if self._newest:
            return
        metadata = self._body["metadata"]
        found = self._tools.api.get(DINOJOBS, self._namespace, metadata["name"])
        if found["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            self._tools.view.jobs.observe(found)
            raise Conflict(f"work on DinoJob {self._namespace}/{metadata['name']}", "changed since it was read", 409)
        self._newest = True

    # -- what is done -------------------------------------------------------------------------------------------

    def _act(self, action: Action) -> float | None:
        self._confirm()
        match action:
            case StartAttempt(number):
                return self._start(number)
            case StopAttempt(number, _, force):
                self._tools.hands.stop(self._body, self.record, number, force=force)
            case Promote():
                return self._promote()
            case Finalize(complete, _):
                return self._finalize(complete)
        return None

    def _start(self, number: int) -> float | None:
        job, profile = self._wishes.of_life(self.record.status), self._wishes.profile
        if job is None or profile is None:
            return _AGAIN_S
        try:
            self._tools.hands.start(self._body, self.record, job, profile, number)
            return None
        except Held as error:
            self._trouble = error.trouble
        except (Forbidden, Invalid) as error:
            self._trouble = Trouble(ConditionType.ADMITTED, "Refused", str(error))
        except (DataError, StorageError) as error:
            self._trouble = Trouble(ConditionType.ADMITTED, names.STORAGE_UNREADABLE, str(error))
        self._save(self.record)
        return _AGAIN_S

    def _restore(self) -> None:
        """Without its document no pod starts, and without the other map nobody hears of its progress any more."""
        job, profile = self._wishes.of_life(self.record.status), self._wishes.profile
        number, hands = at_work(self.record, self._look), self._tools.hands
        if number is None or job is None or profile is None:
            return
        maps = hands.missing(self._body, self.record, number, starting=starting(self.record, self._look, self._now))
        if not maps:
            return
        self._confirm()
        hands.restore(self._body, self.record, job, profile, number, maps)
        said = f"somebody deleted ConfigMap {' and '.join(maps)}; it is made again"
        self._say(Happening("ConfigMapRestored", said, warning=True, key=str(self._now)))

    def _promote(self) -> float:
        job = self._wishes.of_life(self.record.status)
        if job is None or self._wishes.profile is None:
            return _AGAIN_S
        try:
            made = self._server().promote(job, self.record.storage, self._key())
        except TrackingProblem as error:
            self._trouble = Trouble(ConditionType.PROMOTED, "TrackingUnavailable", str(error), "Promoting")
            self._save(self.record)
            return _AGAIN_S
        if made["promotion"] is not None:
            self._save(replace(self.record, promotion=Promotion(**made["promotion"]), run_id=made["runId"]))
        elif made.get("refused"):
            self._save(replace(self.record, refused=made["refused"], run_id=made["runId"]))
        return _SOON_S

    def _finalize(self, complete: bool) -> float:
        record = self.record
        ran = any(one.started_at is not None for one in record.status.attempts) if record.status else False
        if (ran or record.run_id or record.promotion) and not self._close(complete=complete):
            return _AGAIN_S
        self._save(replace(self.record, finalized=record.life))
        return _SOON_S

    def _close(self, *, complete: bool) -> bool:
        """Ends the run of the present life. False: not now. Without its document or its server nobody can: True."""
        job = self._wishes.of_life(self.record.status)
        if job is None or self._wishes.profile is None:
            self._say(
                Happening("RunLeftOpen", "the MLflow run is left open: its document or profile is gone", warning=True)
            )
            return True
        status = self.record.status
        assert status is not None  # noqa: S101 - an attempt was made
        first, last = status.first_attempt, status.next_attempt - 1
        try:
            made = self._server().close(
                job, self.record.storage, self._key(), complete=complete, attempts=(first, last)
            )
        except TrackingProblem as error:
            self._say(Happening("TrackingUnavailable", str(error), warning=True))
            return False
        self.record = replace(self.record, run_id=made["runId"])
        return True

    def _champions(self, job: ResolvedJob) -> Champions:
        return self._server().champions(job) if self._wishes.profile else {}

    def _server(self) -> Tracking:
        assert self._wishes.profile is not None  # noqa: S101 - asked before
        return self._tools.tracking(self._wishes.profile.tracking_uri)

    def _key(self) -> RunKey:
        status = self.record.status
        assert status is not None  # noqa: S101 - an attempt was made
        life = life_key(status.spec_hash, uid_of(self._body), status.first_attempt)
        return run_key(self._namespace, self._body["metadata"]["name"], life)

    def _say(self, what: Happening) -> None:
        self._tools.events.say(self._body, what, self._now)
