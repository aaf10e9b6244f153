"""What a DinoJob's status remembers: the lifecycle's own status, and what only this executor has to know.

Everything is in the object and nothing in the operator's memory, so that another replica goes on at any moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dinoctl.cluster.protocol import Object
from dinoctl.handover.runs import life_name
from dinoctl.lifecycle import Status
from dinoctl.lifecycle.codec import decode, encode
from dinoctl.lifecycle.types import Promotion

_OWN = "executor"


@dataclass(frozen=True)
class Preempted:
    """Kueue took the machines of an attempt. On record before its RayJob is deleted."""

    attempt: int
    message: str


@dataclass(frozen=True)
class Record:
    """``outputs``: where the parents of this life left theirs; ``refused``: why the output was not promoted after all;
    ``finalized``: the life whose run is closed; ``strikes``: infrastructure failures by node; ``nodes``: some that the
    job's ranks were on, ``per_node`` pods of ranks to each (0: unknown); ``restart``: token of the last one that was
    done; ``deactivated``: what Kueue said when told to queue the job no more.
    """

    status: Status | None = None
    storage: str = ""
    run_id: str = ""
    restart: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    preempted: Preempted | None = None
    deactivated: str = ""
    promotion: Promotion | None = None
    refused: str = ""
    finalized: str = ""
    strikes: Mapping[str, int] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    per_node: float = 0.0
    last_failure: Mapping[str, Any] | None = None

    @property
    def life(self) -> str:
        """Name of the present life."""
        return life_name(self.status.first_attempt if self.status else 1)

    @property
    def begun(self) -> bool:
        """An attempt of this life was intended."""
        return self.status is not None and self.status.began_at is not None

    def lifecycle(self) -> dict[str, Any]:
        """The field ``lifecycle``: the operator's memory."""
        own = {
            "outputs": dict(self.outputs),
            "preempted": self.preempted and {"attempt": self.preempted.attempt, "message": self.preempted.message},
            "deactivated": self.deactivated,
            "promotion": self.promotion and _fields(self.promotion),
            "refused": self.refused,
            "finalized": self.finalized,
            "nodes": list(self.nodes),
            "perNode": self.per_node,
        }
        status = encode(self.status) if self.status is not None else {}
        return {**status, _OWN: {key: value for key, value in own.items() if value}}


def read_record(body: Object) -> Record:
    """What an object remembers.

    Raises:
        ValueError: it can't be read: another version wrote it, or somebody edited it.
    """
    status: Mapping[str, Any] = body.get("status") or {}
    memory: Mapping[str, Any] = status.get("lifecycle") or {}
    own: Mapping[str, Any] = memory.get(_OWN) or {}
    try:
        preempted, promotion = own.get("preempted"), own.get("promotion")
        return Record(
            status=decode(memory) if "version" in memory else None,
            storage=status.get("storage", ""),
            run_id=status.get("runId", ""),
            restart=status.get("restart", ""),
            outputs=own.get("outputs", {}),
            preempted=preempted and Preempted(preempted["attempt"], preempted["message"]),
            deactivated=own.get("deactivated", ""),
            promotion=promotion and Promotion(**promotion),
            refused=own.get("refused", ""),
            finalized=own.get("finalized", ""),
            strikes=status.get("strikes", {}),
            excluded=tuple(status.get("excludedNodes", ())),
            nodes=tuple(own.get("nodes", ())),
            per_node=float(own.get("perNode", 0.0)),
            last_failure=status.get("lastFailure"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"status.lifecycle is damaged ({type(error).__name__}: {error})") from error


def begun_life(body: Object) -> tuple[str, str] | None:
    """Name and spec hash of the life that an object has begun, without reading all of its memory."""
    memory = (body.get("status") or {}).get("lifecycle") or {}
    if not isinstance(memory, dict) or memory.get("beganAt") is None:
        return None
    first, spec_hash = memory.get("firstAttempt", 1), memory.get("specHash")
    return (life_name(first), spec_hash) if isinstance(first, int) and isinstance(spec_hash, str) else None


def live_attempt(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attempt that a status remembers as not ended, without reading all of its memory; nothing when none is."""
    memory = status.get("lifecycle")
    attempts = memory.get("attempts") if isinstance(memory, Mapping) else None
    newest = attempts[-1] if isinstance(attempts, list) and attempts else None
    return newest if isinstance(newest, Mapping) and newest.get("endedAt") is None else {}


def _fields(promotion: Promotion) -> dict[str, Any]:
    return {name: getattr(promotion, name) for name in promotion.__dataclass_fields__}
