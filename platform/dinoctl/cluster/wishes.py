"""What a DinoJob asks for now: its document on its profile, and the annotations beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dinoctl.cluster.documents import Documents, Reading
from dinoctl.cluster.objects import annotations_of, deleting
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.render import Refused, check
from dinoctl.cluster.render.layout import groups
from dinoctl.cluster.status import Trouble
from dinoctl.lifecycle import ConditionType, Job, Status
from dinoctl.lifecycle.job import Backoff, Patience
from dinoctl.results import wanted
from dinoctl.spec import names
from dinoctl.spec.profile import OperatorConfig, Profile
from dinoctl.spec.resolve import ResolvedJob

_UNREADABLE = "unreadable"
_FORCE_S, _GIVE_UP_S = 60.0, 780.0
"""After the pods' grace: until they are killed, and until nobody waits for them any more."""


@dataclass(frozen=True)
class Wishes:
    """``job``: what is to run now, None if it can't; ``begun``: what the present life began with, where that is known;
    ``trouble``: why it can't run; ``restart``: token of a restart that was asked for and not done.
    """

    job: ResolvedJob | None
    begun: ResolvedJob | None
    profile: Profile | None
    profile_name: str
    trouble: Trouble | None
    restart: str
    cancel: bool
    suspend: bool

    @property
    def pods(self) -> int | None:
        """Those of workers in the next attempt; None when none can begin."""
        if self.job is None or self.profile is None:
            return None
        return sum(group.pods for group in groups(self.job.spec, self.profile))

    def of_life(self, status: Status | None) -> ResolvedJob | None:
        """The job with the hash that a status speaks of."""
        known = (job for job in (self.job, self.begun) if job is not None)
        return next((job for job in known if status is None or job.spec_hash == status.spec_hash), None)


def read_wishes(body: Object, record: Record, documents: Documents, config: OperatorConfig) -> Wishes:
    """See ``Wishes``."""
    reading = documents.read(body)
    profile, problem = _profile(reading, config)
    notes = annotations_of(body)
    token = notes.get(names.RESTART, "")
    return Wishes(
        job=None if problem else reading.job,
        begun=reading.begun,
        profile=profile,
        profile_name=_name(reading.job or reading.begun, config),
        trouble=Trouble(ConditionType.VALIDATED, "SpecError", problem) if problem else None,
        restart="" if token == record.restart else token,
        cancel=deleting(body) or notes.get(names.CANCEL) == "true",
        suspend=(body.get("spec") or {}).get("suspend") is True if isinstance(body.get("spec"), dict) else False,
    )


def withheld(record: Record, wishes: Wishes) -> Trouble | None:
    """Whoever deactivates a Workload in Kueue doesn't want the next attempt's in its place. A job that its user
    suspends is free again: when resumed, it queues.
    """
    if not record.deactivated or wishes.suspend or wishes.restart or (record.status and record.status.output):
        return None
    text = f"deactivated in Kueue ({record.deactivated}); it queues again after `dinoctl suspend` and `dinoctl resume`"
    return Trouble(ConditionType.ADMITTED, "Deactivated", text)


def job_of(body: Object, record: Record, wishes: Wishes) -> Job:
    """As the lifecycle takes it. With a document that can't be run the present attempt goes on, and no other begins;
    before a restart it ends first.
    """
    status, job = record.status, wishes.job or wishes.begun
    waits = bool(wishes.restart and status and status.live)
    suspend = wishes.suspend or waits or bool(withheld(record, wishes) and not (status and status.live))
    if job is None:
        pinned = tuple(pin.name for pin in status.parents) if status else ()
        name = body["metadata"]["name"]
        return Job(name, _UNREADABLE, pinned, suspend=suspend, delete=wishes.cancel)
    grace = wishes.profile.drain.grace if wishes.profile else 120.0
    patience = Patience(force_s=grace + _FORCE_S, give_up_s=grace + _GIVE_UP_S)
    asked = wanted(job, suspend=suspend, delete=wishes.cancel, backoff=Backoff(), patience=patience)
    return asked if wishes.job is not None else replace(asked, spec_hash=_UNREADABLE)


def _profile(reading: Reading, config: OperatorConfig) -> tuple[Profile | None, str]:
    job = reading.job or reading.begun
    if job is None:
        return None, reading.problem
    name, known = _name(job, config), ", ".join(sorted(config.profiles))
    profile = config.profiles.get(name)
    if reading.problem:
        return profile, reading.problem
    if not name:
        return None, f"spec.profile: required field is missing; profiles here: {known}"
    if profile is None:
        return None, f"spec.profile: no profile named {name!r}; profiles here: {known}"
    try:
        check(job.spec, profile)
    except Refused as error:
        return profile, str(error)
    return profile, ""


def _name(job: ResolvedJob | None, config: OperatorConfig) -> str:
    return (job.spec.profile if job else None) or config.default_profile or ""


DocumentsOf = Callable[[str], Documents]
"""The documents of a namespace."""
