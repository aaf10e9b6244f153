"""From logs, pods, events and the attempt's own word to one class of failure: a pure function.

Machines come before programs, because a program whose machine is taken away complains of everything; and among
programs' complaints the one counts that the others are echoes of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dinoctl.cluster.postmortem.failure import Failure, Kind
from dinoctl.cluster.postmortem.pods import Object, node_of, of_events, of_pods
from dinoctl.cluster.postmortem.signs import Sign, gravest, signs
from dinoctl.handover.outcome import KILLED, Outcome

_MACHINES = (Kind.IMAGE_PULL, Kind.XID, Kind.HOST_OUT_OF_MEMORY, Kind.NODE_LOST, Kind.PREEMPTED)
_BEFORE_MACHINES = (Kind.XID, Kind.CUDA_OUT_OF_MEMORY)
_BESIDE_THE_POINT = (Kind.PREEMPTED, Kind.IMAGE_PULL, Kind.NODE_LOST)
"""Of machines, where the attempt itself could still say what was wrong with it."""


def judge(found: Iterable[Sign], pods: Sequence[Object], events: Sequence[Object], outcome: Outcome | None) -> Failure:
    """``found``: in logs. ``outcome`` is what the attempt said itself, if it could."""
    if outcome is not None and outcome.cause == "Preempted":
        return Failure(Kind.PREEMPTED, outcome.message, "outcome", outcome.node)
    said = _said(outcome)
    own = any(sign.kind is not Kind.NCCL for sign in said)
    sign = gravest([*said, *found])
    machine = min((*of_pods(pods), *of_events(events)), key=_rank, default=None)
    if sign is not None and (machine is None or sign.kind in _BEFORE_MACHINES):
        return _of_sign(sign, pods, outcome)
    if machine is not None and not (own and machine.kind in _BESIDE_THE_POINT):
        return machine
    if sign is not None:
        return _of_sign(sign, pods, outcome)
    if outcome is None:
        return Failure(Kind.UNKNOWN)
    return Failure(_of_outcome(outcome), outcome.message, "outcome" if outcome.message else "", outcome.node)


def _of_outcome(outcome: Outcome) -> Kind:
    """Where nothing else shows anything."""
    if outcome.cause in ("Application", "Spec"):
        return Kind.USER_CODE
    return Kind.KILLED if outcome.message.endswith(KILLED) else Kind.UNKNOWN


def _said(outcome: Outcome | None) -> list[Sign]:
    """The attempt's last word: what its driver took for the telling error of all ranks."""
    if outcome is None or not outcome.message:
        return []
    line = outcome.message.splitlines()[0]
    found = signs("outcome", [line])
    if outcome.environment and not found:
        return [Sign(Kind.STORAGE, line, "outcome")] if _of_storage(line) else []
    if outcome.cause in ("Application", "Spec") and not found:
        return [Sign(Kind.USER_CODE, line, "outcome")]
    return found


def _of_storage(line: str) -> bool:
    return "s3://" in line or "file://" in line or "endpoint" in line or "bucket" in line


def _of_sign(sign: Sign, pods: Sequence[Object], outcome: Outcome | None) -> Failure:
    failure = Failure(sign.kind, sign.line, sign.source, node_of(sign.ip, pods))
    if not failure.node and outcome is not None:
        return replace(failure, node=outcome.node)
    return failure


def _rank(failure: Failure) -> int:
    return _MACHINES.index(failure.kind)
