"""Attempts that ended badly: what is said of the last one, and which nodes the next one avoids. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dinoctl.cluster.objects import labels_of
from dinoctl.cluster.observe import Look
from dinoctl.cluster.pods import nodes_of, suspect
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Record
from dinoctl.lifecycle import Attempt, AttemptState, Cause
from dinoctl.spec import names

_STRIKES = 2
_MOST_EXCLUDED = 8
_BAD = (Cause.INFRASTRUCTURE, Cause.APPLICATION, Cause.SPEC)


def ended(before: Record, after: Record) -> list[Attempt]:
    """Attempts that have ended between two records."""
    live = {a.number for a in before.status.attempts if a.live} if before.status else set()
    return [a for a in (after.status.attempts if after.status else ()) if not a.live and a.number in live]


def blame(before: Record, after: Record, look: Look, pods: int | None) -> Record:
    """Remembers failures. A node on which the infrastructure failed twice is avoided by the next attempts, until one of
    them has trained without it. ``pods``: of workers in the next one (0: the head works alone; None: none can begin),
    which may be another number than the last one's.
    """
    done = ended(before, after)
    for attempt in done:
        after = _struck(_forgiven(before, after, attempt), attempt, look)
    if pods is None:
        return after
    after = _placed(after, look, pods, running=_live(before) is not None and not done)
    needed = math.ceil(max(1, pods) / (after.per_node or 1.0))  # as close together as they were
    seen = set(after.nodes)
    after = replace(after, nodes=after.nodes[: needed + _MOST_EXCLUDED])
    if _live(before) is not None and not done:
        return after  # the attempt's pods were told already
    excluded = _excluded(after.strikes, seen, needed)
    if not after.per_node:  # then too much may seem needed
        kept = tuple(node for node in after.excluded if after.strikes.get(node, 0) >= _STRIKES)
        excluded = max(kept, excluded, key=len)
    return replace(after, excluded=excluded)


def _placed(after: Record, look: Look, pods: int, *, running: bool) -> Record:
    """Remembers where ranks are. How close together only while all of them are there: they come and go one by one."""
    places, live = _places(look.pods, "worker" if pods else "head"), _live(after)
    whole = len(places) >= max(1, pods)
    if running and not whole:
        return after
    after = replace(after, nodes=tuple(sorted({*after.nodes, *places})))
    if running and live is not None and live.state is not AttemptState.STOPPING:
        after = replace(after, per_node=len(places) / len(set(places)))
    return after


def _live(record: Record) -> Attempt | None:
    return record.status.live if record.status else None


def _forgiven(before: Record, after: Record, attempt: Attempt) -> Record:
    """What was avoided to some purpose: it may be mended by now, and a job can live for months."""
    if attempt.trained_at is None:
        return after
    strikes = {node: count for node, count in after.strikes.items() if node not in before.excluded}
    return replace(after, strikes=strikes)


def _struck(after: Record, attempt: Attempt, look: Look) -> Record:
    if attempt.cause not in _BAD:
        return after
    node = (look.outcome.node if look.outcome else "") or suspect(look.pods)
    failure = {"attempt": attempt.number, "class": str(attempt.cause), "message": attempt.message}
    after = replace(after, last_failure=failure | ({"node": node} if node else {}))
    if node and attempt.cause is Cause.INFRASTRUCTURE:
        after = replace(after, strikes={**after.strikes, node: after.strikes.get(node, 0) + 1})
    return after


def _excluded(strikes: Mapping[str, int], seen: set[str], needed: int) -> tuple[str, ...]:
    """The guiltiest, as long as ranks have been seen on as many others as are ``needed``: a job that fits nowhere
    serves nobody, and keeps its quota. A head's node, where no ranks were, may have no GPUs.
    """
    guilty = sorted((node for node, count in strikes.items() if count >= _STRIKES), key=strikes.__getitem__)
    ranks = [node for node in guilty if node in seen]
    kept = ranks[: max(0, len(ranks) - max(0, len(seen) - needed))]
    return tuple(node for node in guilty if seen and node not in kept)[-_MOST_EXCLUDED:]


def _places(pods: Sequence[Object], role: str) -> list[str]:
    """Where they are, a node for each that has one."""
    return [node for pod in pods if labels_of(pod).get(names.ROLE) == role for node in nodes_of([pod])]
