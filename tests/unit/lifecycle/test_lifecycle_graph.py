"""Cycles, and how a child sees its parents."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.lifecycle import Cause, ParentState, Phase
from dinoctl.lifecycle.graph import find_cycle, parent_views
from unit.lifecycle.builders import Story, evidence, gated_job, job, output, parents, running

FAMILY = {"vits": ("vitl",), "vitl": ("vitg-highres",), "vitg-highres": ("vitg",), "vitg": (), "vitb": ("vitl",)}


def test_a_cycle_is_named() -> None:
    edges = {"c": ("b",), "b": ("a",), "a": ("c",), "d": ("a",)}
    assert find_cycle(edges) == ["a", "c", "b", "a"]


def test_a_job_may_not_be_its_own_parent() -> None:
    assert find_cycle({"a": ("a",)}) == ["a", "a"]


def test_no_cycle() -> None:
    assert find_cycle(FAMILY) is None


def test_a_long_chain_needs_no_recursion() -> None:
    chain = {f"j{i:05}": (f"j{i - 1:05}",) if i else () for i in range(3_000)}
    assert find_cycle(chain) is None


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3).map(tuple)))
def test_a_cycle_or_an_order(edges: dict[str, tuple[str, ...]]) -> None:
    cycle = find_cycle(edges)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(parent in edges[name] for name, parent in pairwise(cycle))
        return
    left = dict(edges)
    while ready := [name for name, above in left.items() if not any(parent in left for parent in above)]:
        for name in ready:
            del left[name]
    assert not left, "without a cycle parents can come first"


VIEWS: dict[str, tuple[Callable[[], Story], ParentState]] = {
    "running": (running, ParentState.RUNNING),
    "retrying": (lambda: running().sees(Phase.ABSENT), ParentState.RUNNING),
    "complete": (lambda: running().sees(Phase.SUCCEEDED, output=output()), ParentState.COMPLETE),
    "gate passed, promotion pending": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output(), evidence=evidence()),
        ParentState.COMPLETE,
    ),
    "gate failed": (
        lambda: running(gated_job()).sees(Phase.SUCCEEDED, output=output(), evidence=evidence(passed=False)),
        ParentState.FAILED,
    ),
    "failed": (lambda: running().sees(Phase.FAILED, Cause.SPEC), ParentState.FAILED),
    "suspended": (lambda: Story(job(suspend=True)).round(), ParentState.SUSPENDED),
    "deleted": (lambda: Story(job(delete=True)).round(), ParentState.DELETED),
    "blocked itself": (
        lambda: Story(job(parents=("x",))).round(parents=parents(x=ParentState.FAILED)),
        ParentState.BLOCKED,
    ),
    "complete, but its document changed": (
        lambda: running().sees(Phase.SUCCEEDED, output=output()).asks(spec_hash="b").round(),
        ParentState.BLOCKED,
    ),
}


@pytest.mark.parametrize("case", VIEWS)
def test_view_of_a_parent(case: str) -> None:
    tell, state = VIEWS[case]
    view = parent_views(job(parents=("p",)), {"p": tell().known})["p"]
    assert view.state is state
    assert view.exists is (state is not ParentState.DELETED)


def test_view_of_what_is_missing_and_of_what_has_not_begun() -> None:
    views = parent_views(job(parents=("gone", "new")), {"new": None})
    assert (views["gone"].state, views["new"].state) == (ParentState.MISSING, ParentState.RUNNING)


def test_a_child_is_told_why_its_parent_failed() -> None:
    parent = running().sees(Phase.FAILED, Cause.SPEC, "no such backbone")
    views = parent_views(job(parents=("p",)), {"p": parent.known})
    child = Story(job(parents=("p",))).round(parents=views)
    condition = child.known.conditions[1]
    assert condition.message == "waiting for parent p (Failed: no such backbone)"
