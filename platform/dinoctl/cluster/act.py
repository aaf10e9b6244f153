"""What the lifecycle tells an executor to do, done with Kubernetes objects. Everything here may be done twice, and may
be cut off after any request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dinoctl.cluster.bounded import Bounded
from dinoctl.cluster.edited import digest
from dinoctl.cluster.errors import Exists, Forbidden, Invalid, NotFound, Unavailable
from dinoctl.cluster.finalizer import powerless
from dinoctl.cluster.lives import mark_life
from dinoctl.cluster.objects import attempt_of, deleting, key_of, owned_by, owner_of, uid_of
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.render import SCRATCH, SPOOL, render
from dinoctl.cluster.resources import (
    CONFIGMAPS,
    DISRUPTION_BUDGETS,
    LOCAL_QUEUES,
    PODS,
    RAYJOBS,
    resource_of,
)
from dinoctl.cluster.snapshot import Snapshot
from dinoctl.cluster.status import Trouble
from dinoctl.cluster.view import View
from dinoctl.data.storage import open_storage
from dinoctl.handover.attempt import Attempt, Cluster
from dinoctl.handover.runs import life_key
from dinoctl.lifecycle import ConditionType
from dinoctl.spec import names
from dinoctl.spec.pin import pin
from dinoctl.spec.profile import Profile
from dinoctl.spec.resolve import ResolvedJob


class Held(Exception):
    """An attempt can't start now, and why. It is tried again."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.trouble = Trouble(ConditionType.ADMITTED, reason, message)


@dataclass(frozen=True)
class Hands:
    """Acts. ``bounded`` keeps storage from holding up a thread."""

    api: Api
    view: View
    bounded: Bounded

    def start(self, body: Object, record: Record, job: ResolvedJob, profile: Profile, number: int) -> None:
        """The objects of an attempt, its RayJob last.

        Raises:
            Held: it has to wait.
        """
        assert record.status is not None  # noqa: S101 - an attempt was intended
        key, first = key_of(body), record.status.first_attempt
        self._queue(key.namespace, profile)
        uri, uid = _parent(record.storage), uid_of(body)
        self.bounded(uri, lambda: mark_life(open_storage(uri), first, job.spec_hash, uid))
        self.api.apply(CONFIGMAPS, key.namespace, Snapshot(record.life, job, body["spec"]).body(body))
        attempt = _attempt(body, record, job, profile, number)
        *before, rayjob = render(attempt, profile, owner_of(body), record.excluded)
        for one in before:
            self._apply(key.namespace, one)
        annotations = {**(rayjob["metadata"].get("annotations") or {}), names.RENDERED: digest(rayjob)}
        self._create(body, {**rayjob, "metadata": {**rayjob["metadata"], "annotations": annotations}})

    def missing(self, body: Object, record: Record, number: int, *, starting: bool) -> list[str]:
        """ConfigMaps of a live attempt that somebody deleted. ``starting``: its pods may still need their document."""
        namespace, job = key_of(body)
        progress = names.progress_name(job)
        asked = [progress] if self.view.progress.get(namespace, progress) is None else []
        if starting and record.status is not None:
            asked.append(names.rayjob_name(job, record.status.spec_hash, number))
        return [name for name in asked if not self._there(namespace, name)]

    def restore(
        self, body: Object, record: Record, job: ResolvedJob, profile: Profile, number: int, maps: Sequence[str]
    ) -> None:
        """Makes them again."""
        attempt = _attempt(body, record, job, profile, number)
        for one in render(attempt, profile, owner_of(body), record.excluded):
            if one["kind"] == CONFIGMAPS.kind and one["metadata"]["name"] in maps:
                self._apply(key_of(body).namespace, one)

    def _there(self, namespace: str, name: str) -> bool:
        try:
            self.api.get(CONFIGMAPS, namespace, name)
        except NotFound:
            return False
        return True

    def stop(self, body: Object, record: Record, number: int, *, force: bool) -> None:
        """Deletes an attempt's RayJob, so that its pods save and end; with ``force``, kills them."""
        try:
            self._stop(body, record, number, force=force)
        except Forbidden as error:
            if not powerless(body, error):
                raise

    def _stop(self, body: Object, record: Record, number: int, *, force: bool) -> None:
        namespace = body["metadata"]["namespace"]
        for rayjob in self._rayjobs(body, record, number):
            if not deleting(rayjob):
                self._remove(namespace, rayjob)
        if not force:
            return
        for pod in self.view.pods.of(*key_of(body)):
            if attempt_of(pod) == number:
                self.api.delete(PODS, namespace, pod["metadata"]["name"], grace=0, uid=uid_of(pod))

    def tidy(self, body: Object, record: Record, keep: int) -> None:
        """Of ended attempts the newest ``keep`` RayJobs stay for people to look at."""
        status = record.status
        live = status.live.number if status and status.live else None
        ended = [one for one in self.view.rayjobs.of(*key_of(body)) if _ended(one, body, live)]
        ended.sort(key=lambda one: attempt_of(one) or 0, reverse=True)
        for rayjob in ended[keep:]:
            self._remove(body["metadata"]["namespace"], rayjob)

    def _remove(self, namespace: str, rayjob: Object) -> None:
        """The RayJob last: it is what the others are found by. It stays until its pods have ended."""
        name = rayjob["metadata"]["name"]
        self.api.delete(DISRUPTION_BUDGETS, namespace, name)
        self.api.delete(CONFIGMAPS, namespace, name)
        self.api.delete(RAYJOBS, namespace, name, propagation="Foreground", uid=uid_of(rayjob))

    def _rayjobs(self, body: Object, record: Record, number: int) -> Sequence[Object]:
        """Those of an attempt. One that the cache doesn't hold yet is asked for."""
        found = [one for one in self.view.rayjobs.of(*key_of(body)) if attempt_of(one) == number]
        known = next((a for a in (record.status.attempts if record.status else ()) if a.number == number), None)
        if found or known is None:
            return [one for one in found if owned_by(one, uid_of(body))]
        name = names.rayjob_name(body["metadata"]["name"], known.spec_hash, number)
        try:
            one = self.api.get(RAYJOBS, body["metadata"]["namespace"], name)
        except NotFound:
            return []
        return [one] if owned_by(one, uid_of(body)) else []

    def _queue(self, namespace: str, profile: Profile) -> None:
        """Without Kueue the label of a queue means nothing, and the job would take machines that it wasn't given."""
        if profile.queue is None:
            return
        try:
            self.api.get(LOCAL_QUEUES, namespace, profile.queue)
        except NotFound as error:
            if error.missing_kind:
                raise Held("KueueMissing", _ASK.format("Kueue", f"queue {profile.queue}")) from None
            text = f"there is no LocalQueue {profile.queue} in namespace {namespace}; ask the administrator for it"
            raise Held("QueueMissing", text) from None
        except Forbidden:
            return  # an installation that doesn't let us ask: Kueue itself will say it on the Workload

    def _apply(self, namespace: str, one: Object) -> None:
        try:
            self.api.apply(resource_of(one), namespace, one)
        except Invalid:
            if not one.get("immutable"):
                raise
            # Written by an earlier try of this start, when the profile was another one; nothing has read it yet.
            self.api.delete(CONFIGMAPS, namespace, one["metadata"]["name"])
            self.api.apply(CONFIGMAPS, namespace, one)

    def _create(self, body: Object, rayjob: Object) -> None:
        namespace, name = body["metadata"]["namespace"], rayjob["metadata"]["name"]
        try:
            self.view.rayjobs.observe(self.api.create(RAYJOBS, namespace, rayjob))
        except Exists:
            found = self.api.get(RAYJOBS, namespace, name)
            if not owned_by(found, uid_of(body)):
                raise Held("NameTaken", f"RayJob {name} of an earlier job of this name is still there") from None
            self.view.rayjobs.observe(found)
        except NotFound as error:
            if not error.missing_kind:
                raise
            raise Held("KubeRayMissing", _ASK.format("KubeRay", "a RayJob")) from None
        except Invalid as error:
            raise Held("RayJobRefused", f"the cluster refuses RayJob {name}: {error.message}") from None
        except Unavailable as error:
            if "failed calling webhook" not in error.message:
                raise
            text = f"nobody answers who has to check RayJob {name}; do Kueue and KubeRay run? {error.message}"
            raise Held("RayJobRefused", text) from None


_ASK = "{0} is not installed in this cluster, but this job needs it for {1}; ask the administrator"


def storage_of(body: Object, job: ResolvedJob, profile: Profile) -> str:
    """Where the outputs of all lives of a job go."""
    prefix = (job.spec.storage or profile.storage).rstrip("/")
    return f"{prefix}/{body['metadata']['namespace']}/{job.name}"


def _parent(storage: str) -> str:
    return storage.rsplit("/", 1)[0]


def _attempt(body: Object, record: Record, job: ResolvedJob, profile: Profile, number: int) -> Attempt:
    assert record.status is not None  # noqa: S101 - it is intended
    first = record.status.first_attempt
    cluster = Cluster(
        namespace=body["metadata"]["namespace"],
        uid=uid_of(body),
        progress=names.progress_name(job.name),
        run_life=life_key(job.spec_hash, uid_of(body), first),
        first_attempt=first,
        secret_env=tuple(profile.secret_env),
        labels=dict(job.labels),
    )
    return Attempt(
        name=job.name,
        spec=pin(job.spec, record.outputs),
        spec_hash=job.spec_hash,
        number=number,
        storage_uri=record.storage,
        scratch=SCRATCH,
        spool=SPOOL,
        tracking_uri=profile.tracking_uri,
        cluster=cluster,
    )


def _ended(rayjob: Object, body: Object, live: int | None) -> bool:
    number = attempt_of(rayjob)
    return number is not None and number != live and owned_by(rayjob, uid_of(body)) and not deleting(rayjob)
