"""A DinoJob in one line, with the names of fields that jobs of a state directory have."""

from dataclasses import dataclass
from typing import Any

from dinoctl.cluster.objects import condition
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import live_attempt
from dinoctl.lifecycle import ConditionType
from dinoctl.spec import names
from dinoctl.spec.job import STAGES


@dataclass(frozen=True)
class Row:
    """One job as people and scripts see it."""

    name: str
    namespace: str
    stage: str
    state: str
    why: str
    step: int | None
    steps: int | None
    checkpoint_step: int | None
    images_per_s: float | None
    eta_s: float | None
    eta: str
    attempt: int | None
    queue: str
    workers: int | None
    model: str
    alias: str
    storage: str
    parents: list[Any]
    failures: dict[str, Any]
    waste: dict[str, Any]
    last_failure: dict[str, Any] | None
    excluded_nodes: list[str]
    conditions: list[Any]

    def plain(self) -> dict[str, Any]:
        """For ``-o json`` and ``-o yaml``."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "eta"}


def row(job: Object, why: str) -> Row:
    """From the object's status; ``why`` comes from ``why.py``."""
    status, spec = job.get("status") or {}, job.get("spec") or {}
    model = status.get("model") or {}
    return Row(
        name=job["metadata"]["name"],
        namespace=job["metadata"].get("namespace", ""),
        stage=status.get("stage") or next((kind for kind in STAGES if spec.get(kind) is not None), "?"),
        state=state(job),
        why=why,
        step=status.get("step"),
        steps=status.get("steps"),
        checkpoint_step=status.get("checkpointStep"),
        images_per_s=status.get("imagesPerSecond"),
        eta_s=status.get("etaSeconds"),
        eta=status.get("eta", ""),
        attempt=status.get("attempt"),
        queue=status.get("queue", ""),
        workers=status.get("workers") or (spec.get("compute") or {}).get("workers"),
        model=f"{model['name']}/{model['version']}" if model.get("version") else "",
        alias=model.get("alias", ""),
        storage=status.get("storage", ""),
        parents=status.get("parents", []),
        failures=status.get("failures", {}),
        waste=status.get("waste", {}),
        last_failure=status.get("lastFailure"),
        excluded_nodes=status.get("excludedNodes", []),
        conditions=status.get("conditions", []),
    )


def state(job: Object) -> str:
    """One word."""
    if job["metadata"].get("deletionTimestamp"):
        return "Deleting"
    found: str = (job.get("status") or {}).get("state") or "Pending"
    return found


def settled(job: Object) -> bool:
    """Nothing more happens until somebody acts: ended, suspended, or held up for good; and this isn't what was said of
    an older document, or before a restart that was asked for.
    """
    at_rest = (*names.ENDED_STATES, "Suspended", *(() if _tried_again(job) else ("Blocked",)))
    return _current(job) and state(job) in at_rest and not restarts(job)


def ended(job: Object) -> bool:
    """No attempt follows."""
    return state(job) in names.ENDED_STATES and not restarts(job)


def live(job: Object) -> int | None:
    """Number of the attempt that has not ended, as the operator knows it: also of one that is held up."""
    number: int | None = live_attempt(job.get("status") or {}).get("number")
    return number


def _tried_again(job: Object) -> bool:
    """The operator tries to start it every now and then: an attempt that it has begun, or the first one, which it
    begins when storage has said how things stand.
    """
    return live(job) is not None or condition(job, ConditionType.ADMITTED).get("reason") == names.STORAGE_UNREADABLE


def restarts(job: Object) -> bool:
    """A restart was asked for and is not done yet. One whose document can't be run waits for another document."""
    return _asked(job) and not refusal(job)


def refusal(job: Object) -> str:
    """Why the restart that was asked for is not done."""
    validated = condition(job, ConditionType.VALIDATED)
    refused = _asked(job) and _current(job) and validated.get("status") == "False"
    return str(validated.get("message") or "its document is not valid") if refused else ""


def _asked(job: Object) -> bool:
    token = (job["metadata"].get("annotations") or {}).get(names.RESTART)
    return bool(token) and token != (job.get("status") or {}).get("restart")


def _current(job: Object) -> bool:
    """The operator has seen the present document."""
    return (job.get("status") or {}).get("observedGeneration") in (None, job["metadata"].get("generation"))


def exit_code(jobs: list[Object]) -> int:
    """2 when a document or data was at fault, 1 when another job failed or could not start, else 0."""
    bad = [job for job in jobs if state(job) in ("Failed", "Cancelled", "Blocked")]
    reasons = {one.get("reason") for job in bad for one in (job.get("status") or {}).get("conditions") or ()}
    return 2 if "SpecError" in reasons else 1 if bad else 0
