"""Every closed set of words that the lifecycle uses; each value is what a user reads in a status."""

from enum import StrEnum


class AttemptState(StrEnum):
    """How far an attempt has come, as recorded in the status."""

    INTENDED = "Intended"  # written down; its effect perhaps not done yet
    RUNNING = "Running"  # its effect has been seen at least once (queued counts)
    STOPPING = "Stopping"  # a stop was decided; only its end can follow
    ENDED = "Ended"


class Cause(StrEnum):
    """Why an attempt ended. Only INFRASTRUCTURE and APPLICATION are charged to a budget."""

    SUCCEEDED = "Succeeded"
    INFRASTRUCTURE = "Infrastructure"  # node lost, pod killed, storage down, vanished, or no committed output
    APPLICATION = "Application"  # the stage's code raised
    SPEC = "Spec"  # the document cannot work: no retry
    PREEMPTED = "Preempted"  # the scheduler took the machines: a normal event, no charge, a short delay
    STOPPED = "Stopped"  # a person asked for it: no charge, no delay


class Phase(StrEnum):
    """What an executor sees of one attempt's process or RayJob."""

    ABSENT = "Absent"  # looked, and it is not there
    PENDING = "Pending"  # there, but queued or not admitted
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"  # could not look: never taken for failed


class ParentState(StrEnum):
    """A parent as its child sees it."""

    COMPLETE = "Complete"  # output committed and gate passed
    RUNNING = "Running"  # under way: it may yet complete by itself
    SUSPENDED = "Suspended"
    BLOCKED = "Blocked"  # waits for somebody itself
    FAILED = "Failed"
    MISSING = "Missing"
    DELETED = "Deleted"


class StopReason(StrEnum):
    """On whose behalf an attempt is stopped."""

    SUSPEND = "Suspend"
    DELETE = "Delete"
    SUPERSEDED = "Superseded"
    DEADLINE = "Deadline"


class Truth(StrEnum):
    """The status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class ConditionType(StrEnum):
    """The conditions, in the order in which a job goes through them. All are positive: True is progress or an end."""

    VALIDATED = "Validated"
    PARENTS_READY = "ParentsReady"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    CHECKPOINTED = "Checkpointed"
    HEALTHY = "Healthy"
    EVALUATED = "Evaluated"
    PROMOTED = "Promoted"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a condition has its status: a closed set, so that alerts and scripts can rely on it."""

    VALID = "Valid"
    SPEC_CHANGED = "SpecChanged"
    SPEC_ERROR = "SpecError"

    NO_PARENTS = "NoParents"
    PARENTS_COMPLETE = "ParentsComplete"
    PARENT_RUNNING = "ParentRunning"
    PARENT_SUSPENDED = "ParentSuspended"
    PARENT_BLOCKED = "ParentBlocked"
    PARENT_FAILED = "ParentFailed"
    PARENT_MISSING = "ParentMissing"
    PARENT_DELETED = "ParentDeleted"
    PARENT_CHANGED = "ParentChanged"

    NOT_STARTED = "NotStarted"
    STARTING = "Starting"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    STOPPING = "Stopping"
    NO_NEWS = "NoNews"
    BACKOFF = "Backoff"
    ENDED = "Ended"

    NO_CHECKPOINT = "NoCheckpoint"
    CHECKPOINT_COMMITTED = "CheckpointCommitted"

    IN_ORDER = "InOrder"
    TRAINING_WARNING = "TrainingWarning"
    RESULTS_UNREADABLE = "ResultsUnreadable"
    INFRASTRUCTURE_FAILURE = "InfrastructureFailure"
    APPLICATION_FAILURE = "ApplicationFailure"
    PREEMPTED = "Preempted"

    NOT_EVALUATED = "NotEvaluated"
    NOT_GATED = "NotGated"
    GATE_PASSED = "GatePassed"
    GATE_FAILED = "GateFailed"
    NOT_REQUESTED = "NotRequested"
    PROMOTING = "Promoting"
    PROMOTED = "Promoted"

    NOT_SUSPENDED = "NotSuspended"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    STOP_UNCONFIRMED = "StopUnconfirmed"

    IN_PROGRESS = "InProgress"
    FINISHED = "Finished"
    NOT_FAILED = "NotFailed"
    INFRASTRUCTURE_EXHAUSTED = "InfrastructureRetriesExhausted"
    APPLICATION_EXHAUSTED = "ApplicationRetriesExhausted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    CANCELLED = "Cancelled"
