"""What lines of logs are signs of. Ranks echo each other: whoever loses a peer complains of the network."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dinoctl.cluster.postmortem.failure import Kind

MAX_LINE = 500
_PREFIX = re.compile(r"^\((?P<actor>[\w.:@ -]+?)(?: pid=\d+)?(?:, ip=(?P<ip>[\d.a-f:]+))?\)\s?")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^(?:[a-zA-Z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Problem)\b(?::|$)")
_SIGNS = (
    (
        Kind.XID,
        re.compile(r"NVRM: Xid|\bXid \(PCI|fallen off the bus|uncorrectable ECC error|GPU is lost|CUDA_ERROR_ECC"),
    ),
    (
        Kind.CUDA_OUT_OF_MEMORY,
        re.compile(r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"),
    ),
    (
        Kind.HOST_OUT_OF_MEMORY,
        re.compile(
            r"^MemoryError\b|Cannot allocate memory|ray\.exceptions\.OutOfMemoryError|running low on memory|"
            r"oom-kill|Out of memory: Killed process|is killed by signal: Killed"
        ),
    ),
    (
        Kind.NCCL,
        re.compile(
            r"\bnccl(System|Remote|Internal|UnhandledCuda)?Error\b|NCCL (WARN|error|communicator)|"
            r"Watchdog caught collective operation timeout|WorkNCCL\(|DistBackendError|DistNetworkError|"
            r"\[.*gloo.*\].*(Connection|Timed out|timeout)|Connection (closed|reset) by peer"
        ),
    ),
    (
        Kind.STORAGE,
        re.compile(
            r"^(dinoctl\.data\.errors\.)?(StorageError|NotFoundError)\b|^botocore\.exceptions\.|^s3transfer\.|"
            r"^(\w+\.)*(EndpointConnectionError|ReadTimeoutError|NoCredentialsError)\b|"
            r"An error occurred \((SlowDown|InternalError|AccessDenied|NoSuchBucket|ServiceUnavailable|503|403)\)|"
            r"^OSError: \[Errno (28|122)\]|no space left"
        ),
    ),
)
_ECHO = re.compile(
    r"^(ray\.|RayTaskError|RayActorError|ActorDiedError|WorkerGroupError|TrainingFailedError|torch\.distr)"
)
# In this order one is the cause and the others its consequences.
_GRAVITY = (Kind.XID, Kind.CUDA_OUT_OF_MEMORY, Kind.HOST_OUT_OF_MEMORY, Kind.STORAGE, Kind.USER_CODE, Kind.NCCL)


@dataclass(frozen=True)
class Sign:
    """A line that shows a class of failure; ``ip`` of the pod that wrote it, where the line says so."""

    kind: Kind
    line: str
    source: str
    ip: str = ""


def signs(source: str, lines: Iterable[str]) -> list[Sign]:
    """The first sign of each class in a log, but the last exception: what came before it may have been caught."""
    found: dict[Kind, Sign] = {}
    traced = False
    for raw in lines:
        line, ip = _bare(raw)
        if line.startswith("Traceback (most recent call last)"):
            traced = True
        kind = _kind(line)
        if kind is None and traced and _EXCEPTION.match(line) and not _ECHO.match(line):
            found[Kind.USER_CODE] = Sign(Kind.USER_CODE, line, source, ip)
        elif kind is not None and (kind not in found or kind is Kind.STORAGE):
            found[kind] = Sign(kind, line, source, ip)
    return list(found.values())


def gravest(found: Iterable[Sign]) -> Sign | None:
    """The one that explains the others; among equals the first."""
    return min(found, key=lambda sign: _GRAVITY.index(sign.kind), default=None)


def _kind(line: str) -> Kind | None:
    return next((kind for kind, pattern in _SIGNS if pattern.search(line)), None)


def _bare(raw: str) -> tuple[str, str]:
    """Without colours and without Ray's ``(RayTrainWorker pid=7, ip=10.0.0.3)``."""
    line = _COLOUR.sub("", raw).rstrip()
    prefix = _PREFIX.match(line)
    if prefix is None:
        return line.strip()[:MAX_LINE], ""
    return line[prefix.end() :].strip()[:MAX_LINE], prefix["ip"] or ""
