"""The one finalizer: it closes the MLflow run of a deleted job. Everything else the garbage collector does.

It is set before the first attempt and taken away as soon as the run is closed, so a job that is done, or never began,
is deleted at once, also while no operator runs. It never holds up a deletion for longer than it has to: after
``finalize_timeout`` without an answer from the tracking server, or with the annotation ``abandon``, it goes.

When a whole namespace is deleted, the operator's rights in it are deleted as well, and soon. What is left then is what
the chart gives for all namespaces: to read and to patch DinoJobs. It is enough for this module.
"""

from dinoctl.cluster.errors import ApiError, Forbidden
from dinoctl.cluster.objects import annotations_of, deleting, seconds
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.record import Record
from dinoctl.cluster.resources import DINOJOBS
from dinoctl.cluster.view import View
from dinoctl.spec import names


def holds(body: Object) -> bool:
    """It is set."""
    return names.FINALIZER in (body["metadata"].get("finalizers") or ())


def abandoned(body: Object) -> bool:
    """A person wants the object gone now."""
    return annotations_of(body).get(names.ABANDON) == "true"


def idle(record: Record) -> bool:
    """There is no run to close: none was begun, or it is closed, which comes after the last attempt's end."""
    ended = record.status is not None and record.status.outcome is not None
    return not record.begun or (ended and record.finalized == record.life)


def waited(body: Object, record: Record, timeout: float, now: float) -> bool:
    """The work has ended, and the tracking server had its time."""
    asked, status = seconds(body["metadata"].get("deletionTimestamp")), record.status
    if asked is None or status is None or status.outcome is None:
        return False
    ends = [at for one in status.attempts for at in (one.ended_at, one.stop_at) if at is not None]
    return now - max([asked, *ends]) > timeout


def powerless(body: Object, error: ApiError) -> bool:
    """The job goes with its namespace, and the operator's rights there went first: whatever the refused request was
    about goes too, by itself.
    """
    return deleting(body) and isinstance(error, Forbidden) and error.refused


def put(api: Api, view: View, body: Object) -> Object:
    """Sets it, unless it is there. The object as it is then; Conflict when ``body`` is not the newest."""
    return (
        body if holds(body) else _write(api, view, body, [*(body["metadata"].get("finalizers") or ()), names.FINALIZER])
    )


def take(api: Api, view: View, body: Object) -> Object:
    """Takes it away. The object as it is then, or was last."""
    if not holds(body):
        return body
    return _write(api, view, body, [one for one in body["metadata"]["finalizers"] if one != names.FINALIZER])


def _write(api: Api, view: View, body: Object, finalizers: list[str]) -> Object:
    metadata = body["metadata"]
    patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": finalizers}}
    answer = api.patch(DINOJOBS, metadata["namespace"], metadata["name"], patch)
    view.jobs.observe(answer)
    return answer
