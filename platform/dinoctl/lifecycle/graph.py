"""Many jobs as one graph: a cycle if there is one, and each parent as its children see it."""

from collections.abc import Iterable, Mapping

from dinoctl.lifecycle.conditions import is_false, is_true, settled
from dinoctl.lifecycle.enums import ConditionType, ParentState
from dinoctl.lifecycle.summary import explain, state_of
from dinoctl.lifecycle.types import Job, ParentView, Status

Edges = Mapping[str, Iterable[str]]
"""Each job's name with the names of its parents."""


def find_cycle(edges: Edges) -> list[str] | None:
    """A cycle as [a, b, ..., a], each job followed by a parent of its own; None if there is none."""
    clear: set[str] = set()
    for start in sorted(edges):
        cycle = _walk(edges, start, clear)
        if cycle:
            least = cycle.index(min(cycle))
            return [*cycle[least:], *cycle[: least + 1]]
    return None


def parent_views(job: Job, statuses: Mapping[str, Status | None]) -> dict[str, ParentView]:
    """The job's parents. A name not among the statuses is missing; None is a job that nobody has looked at yet."""
    missing = ParentView(ParentState.MISSING, "there is no such job")
    return {name: _view(statuses[name]) if name in statuses else missing for name in job.parents}


def _view(status: Status | None) -> ParentView:
    if status is None:
        return ParentView(ParentState.RUNNING, state_of(None))
    state = _parent_state(status)
    why = f": {explain(status)}" if state in (ParentState.FAILED, ParentState.BLOCKED) else ""
    return ParentView(state, f"{state_of(status)}{why}", status.spec_hash)


def _parent_state(status: Status) -> ParentState:
    """A parent is complete for its children as soon as its gate has passed: they need its output, not the registry."""
    if status.deleted_at is not None:
        return ParentState.DELETED
    if status.outcome and not status.outcome.complete:
        return ParentState.FAILED
    if is_false(status, ConditionType.VALIDATED):
        return ParentState.RUNNING if status.live else ParentState.BLOCKED
    if is_true(status, ConditionType.EVALUATED):
        return ParentState.COMPLETE
    if is_true(status, ConditionType.SUSPENDED):
        return ParentState.SUSPENDED
    return ParentState.BLOCKED if settled(status) else ParentState.RUNNING


def _walk(edges: Edges, start: str, clear: set[str]) -> list[str] | None:
    """Depth first along parents, without recursion; ``clear`` collects jobs that lead to no cycle."""
    path: list[str] = [start]
    rest = [iter(sorted(edges.get(start, ())))]
    while rest:
        name = next(rest[-1], None)
        if name is None:
            rest.pop()
            clear.add(path.pop())
        elif name in path:
            return path[path.index(name) :]
        elif name not in clear:
            path.append(name)
            rest.append(iter(sorted(edges.get(name, ()))))
    return None
