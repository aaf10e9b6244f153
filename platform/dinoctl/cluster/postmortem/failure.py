"""The classes of failure, and what a person does about each."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an attempt ended of, as status and metrics name it."""

    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    NCCL = "Nccl"
    XID = "Xid"  # the GPU or its driver
    STORAGE = "Storage"
    USER_CODE = "UserCode"  # the stage's code or the document
    PREEMPTED = "Preempted"  # also evicted and drained
    NODE_LOST = "NodeLost"
    KILLED = "Killed"  # a rank, by nobody knows whom
    IMAGE_PULL = "ImagePull"
    UNKNOWN = "Unknown"


ADVICE = {
    Kind.CUDA_OUT_OF_MEMORY: "a GPU ran out of memory: more workers, a smaller globalBatch, zeroStage 3, or "
    "compute.activationCheckpointing: full",
    Kind.HOST_OUT_OF_MEMORY: "a node ran out of memory: fewer compute.loaderWorkers, or more memoryPerWorker in "
    "the profile",
    Kind.NCCL: "ranks lost each other: look at the node's network, and in the other logs for who left first",
    Kind.XID: "a GPU failed: the node needs its administrator; it is avoided after a second time",
    Kind.STORAGE: "the storage did not answer as it must: check bucket, endpoint and credentials",
    Kind.USER_CODE: "the program or the document is at fault: a restart alone will not mend it",
    Kind.PREEMPTED: "the machines were taken away: nothing to do, it goes on from its last checkpoint",
    Kind.NODE_LOST: "a node went away: nothing to do, it goes on from its last checkpoint",
    Kind.KILLED: "a rank ended without a word: look who deleted its pod, and in its node's kernel log for a lack of "
    "memory; it goes on from its last checkpoint",
    Kind.IMAGE_PULL: "the image could not be pulled: check the profile's image and imagePullSecrets",
    Kind.UNKNOWN: "nothing in logs, pods and events says why; read the logs",
}


@dataclass(frozen=True)
class Failure:
    """``line`` shows it; ``source`` is where it stands: ``rank-00003``, ``driver``, ``outcome``, ``pod NAME``,
    ``event``. ``node`` is empty where it isn't known, or doesn't matter.
    """

    kind: Kind
    line: str = ""
    source: str = ""
    node: str = ""

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        return ADVICE[self.kind]
