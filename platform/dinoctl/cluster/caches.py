"""The caches of an operator, and what an event in each wants looked at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinoctl.cluster import projections
from dinoctl.cluster.cache import Cache, Name, job_of
from dinoctl.cluster.protocol import Api, Keep, Object
from dinoctl.cluster.resources import CONFIGMAPS, DINOJOBS, PODS, RAYJOBS, WORKLOADS, Resource
from dinoctl.spec import names

PROGRESS = "progress"
"""Value of the label ``names.ROLE`` of the ConfigMaps that workers report to."""
Wants = Callable[[Name], None]


@dataclass(frozen=True)
class Caches:
    """``workloads`` are indexed by the name of their RayJob, all others by their job."""

    jobs: Cache
    rayjobs: Cache
    pods: Cache
    workloads: Cache
    progress: Cache

    def all(self) -> tuple[Cache, ...]:
        """Each of them."""
        return self.jobs, self.rayjobs, self.pods, self.workloads, self.progress

    @property
    def unlisted(self) -> dict[str, bool]:
        """Namespaces of which some kind was never listed, and whether the server refuses all that are missing."""
        found = [item for cache in self.all() for item in cache.unlisted.items()]
        return {namespace: all(refused for one, refused in found if one == namespace) for namespace, _ in found}


def build(
    api: Api,
    namespaces: Sequence[str | None],
    *,
    job_changed: Callable[[Object], None],
    job_written: Callable[[Object], None],
    wants: Wants,
    progressed: Wants,
    restarted: Callable[[str, str], None],
) -> Caches:
    """Caches that are not started yet. ``job_written``: by this process. ``wants`` is called with the job that an event
    of another object concerns, ``progressed`` when its workers report.
    """

    def owned(call: Wants) -> Callable[[Object], None]:
        def changed(body: Object) -> None:
            job = job_of(body)
            if job is not None:
                call((body["metadata"].get("namespace") or "", job))

        return changed

    def again(resource: Resource) -> Callable[[str], None]:
        return lambda reason: restarted(resource.plural, reason)

    def cache(resource: Resource, changed: Callable[[Object], None], trim: Keep, labels: str) -> Cache:
        return Cache(api, resource, namespaces, changed, labels=labels, trim=trim, restarted=again(resource))

    rayjobs = cache(RAYJOBS, owned(wants), projections.ray_job, names.JOB)

    def workload_changed(body: Object) -> None:
        namespace, owner = body["metadata"].get("namespace") or "", projections.owner_name(body)
        ray_job = rayjobs.get(namespace, owner) if owner else None
        if ray_job is not None and (job := job_of(ray_job)) is not None:
            wants((namespace, job))

    workloads = Cache(
        api,
        WORKLOADS,
        namespaces,
        workload_changed,
        trim=projections.workload,
        index=projections.owner_name,
        restarted=again(WORKLOADS),
    )
    jobs = Cache(
        api,
        DINOJOBS,
        namespaces,
        job_changed,
        trim=projections.job,
        observed=job_written,
        restarted=again(DINOJOBS),
    )
    pods = cache(PODS, owned(wants), projections.pod, names.JOB)
    selector = f"{names.JOB},{names.ROLE}={PROGRESS}"
    return Caches(jobs, rayjobs, pods, workloads, cache(CONFIGMAPS, owned(progressed), projections.progress, selector))
