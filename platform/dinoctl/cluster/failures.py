"""Attempts that ended badly: what is said of the last one, and which nodes the next one avoids. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from dinoctl.cluster.objects import labels_of
from dinoctl.cluster.observe import Look
from dinoctl.cluster.pods import nodes_of, suspect
from dinoctl.cluster.protocol import Object
from dinoctl.cluster.record import Record
from dinoctl.lifecycle import Attempt, Cause
from dinoctl.spec import names

_STRIKES = 2
_MOST_EXCLUDED, _MOST_NODES = 8, 16
_BAD = (Cause.INFRASTRUCTURE, Cause.APPLICATION, Cause.SPEC)


def ended(before: Record, after: Record) -> list[Attempt]:
    """Attempts that have ended between two records."""
    live = {a.number for a in before.status.attempts if a.live} if before.status else set()
    return [a for a in (after.status.attempts if after.status else ()) if not a.live and a.number in live]


def blame(before: Record, after: Record, look: Look) -> Record:
    """Remembers failures. A node on which the infrastructure failed twice is avoided, as long as ranks of the job have
    been seen on another one: nobody is served by a job that fits nowhere, and a head's node may have no GPUs.
    """
    for attempt in ended(before, after):
        if attempt.cause not in _BAD:
            continue
        node = (look.outcome.node if look.outcome else "") or suspect(look.pods)
        failure = {"attempt": attempt.number, "class": str(attempt.cause), "message": attempt.message}
        after = replace(after, last_failure=failure | ({"node": node} if node else {}))
        if node and attempt.cause is Cause.INFRASTRUCTURE:
            after = replace(after, strikes={**after.strikes, node: after.strikes.get(node, 0) + 1})
    guilty = sorted((node for node, count in after.strikes.items() if count >= _STRIKES), key=after.strikes.__getitem__)
    excluded = tuple(guilty[-_MOST_EXCLUDED:])
    seen = tuple(sorted({*after.nodes, *_places(look.pods)}))[:_MOST_NODES]
    others = set(seen) - set(excluded)
    return replace(after, nodes=seen, excluded=excluded if others else after.excluded)


def _places(pods: Sequence[Object]) -> set[str]:
    """Where ranks are; of a job that the head does alone, where that is."""
    ranks = [pod for pod in pods if labels_of(pod).get(names.ROLE) == "worker"]
    return nodes_of(ranks or pods)
