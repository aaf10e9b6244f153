"""Names on Kubernetes: the API group, labels, annotations, and what the objects of a job are called.

All follow from job, spec hash and attempt, so that doing something twice finds the same object.
"""

import hashlib

GROUP, VERSION, KIND, PLURAL = "dinoctl.io", "v1alpha1", "DinoJob", "dinojobs"
MANAGER = "dinoctl-operator"
"""Field manager of server-side apply, and value of ``app.kubernetes.io/managed-by``."""

JOB = f"{GROUP}/job"
ATTEMPT = f"{GROUP}/attempt"
ROLE = f"{GROUP}/role"
"""Labels of everything that belongs to a job; of an attempt's objects and pods; head, worker or submitter of a pod."""

CANCEL = f"{GROUP}/cancel"
RESTART = f"{GROUP}/restart"
ABANDON = f"{GROUP}/abandon"
"""Annotations of a DinoJob. Cancel ("true"): end it for good. Restart (any new value): a new life for a job that has
ended. Abandon ("true"): delete it now, whatever the finalizer still waits for.
"""
FINALIZER = f"{GROUP}/tracking"
RENDERED = f"{GROUP}/rendered"
"""Annotation of a RayJob: digest of what was rendered, so that an edit by somebody is noticed."""

ENDED_STATES = ("Complete", "Failed", "Cancelled")
"""``status.state`` of a job that no attempt follows in, unless it is restarted."""

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"

STORAGE_UNREADABLE = "StorageUnreadable"
"""Reason of a condition: storage didn't answer, and is asked again."""
_OURS = "dinojob"
"""Of objects that are applied without asking whose they were: a job named ``team`` takes over no account
``team-worker`` that somebody gave rights to.
"""
_DIGITS = 5
MAX_RAYJOB = 47
"""Of KubeRay: services and pods are named after a RayJob."""


def rayjob_name(job: str, spec_hash: str, attempt: int) -> str:
    """Of an attempt's RayJob, and of its ConfigMap: begins with a letter, at most 47 characters."""
    end = f"-{hashlib.sha256(f'{job}/{spec_hash}'.encode()).hexdigest()[:_DIGITS]}-{attempt}"
    stem = job if job[0].isalpha() else f"j{job}"
    return stem[: MAX_RAYJOB - len(end)].rstrip("-") + end


def account_name(job: str) -> str:
    """Of the ServiceAccount, Role and RoleBinding of a job's pods."""
    return f"{_OURS}-{job}-worker"


def progress_name(job: str) -> str:
    """Of the ConfigMap that a job's workers report to."""
    return f"{_OURS}-{job}-progress"


def resolved_name(job: str) -> str:
    """Of the ConfigMap that keeps the resolved document."""
    return f"{_OURS}-{job}-resolved"
