"""Objects to jobs: the command line's rules, and no object that breaks anything."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.cluster.documents import Documents, Memo, Reading, load_object, parents_of
from dinoctl.cluster.snapshot import Snapshot, read_snapshot
from dinoctl.spec.load import LoadedJob
from dinoctl.spec.resolve import resolve

PRE: dict[str, Any] = {"pretrain": {"data": {"source": "s3://b/d"}, "steps": 100, "globalBatch": 8}}
HIGH: dict[str, Any] = {"highres": {"from": {"job": "pre"}, "steps": 10}}


def body(name: str, spec: Any, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1, **metadata},
        "spec": spec,
    }


def documents(*bodies: dict[str, Any], begun: dict[str, Snapshot] | None = None, memo: Memo | None = None) -> Documents:
    found = {one["metadata"]["name"]: one for one in bodies}
    return Documents(found.get, lambda one: (begun or {}).get(one["metadata"]["name"]), memo or Memo())


def test_the_same_hashes_as_the_command_line() -> None:
    loaded: list[LoadedJob] = [load_object(body("pre", PRE)), load_object(body("high", HIGH))]
    there = {job.name: job for job in resolve(loaded)}
    here = documents(body("pre", PRE), body("high", HIGH))
    for name, spec in (("pre", PRE), ("high", HIGH)):
        reading = here.read(body(name, spec))
        assert reading.problem == ""
        assert reading.job is not None
        assert reading.job.spec_hash == there[name].spec_hash
        assert reading.job.to_dict() == there[name].to_dict()


def test_a_missing_parent_is_no_problem_of_the_document() -> None:
    reading = documents(body("high", HIGH)).read(body("high", HIGH))
    assert reading.problem == ""
    assert reading.job is not None
    assert reading.job.parents == ("pre",)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (None, "must be a mapping"),
        ([], "must be a mapping"),
        ({}, "give exactly one of"),
        ({**PRE, "pack": {"source": "/x"}}, "give exactly one of"),
        ({"pretrain": {"data": {"source": "s3://b/d"}, "steps": -1}}, "spec.pretrain.steps: must be at least 1"),
        ({"pretrain": {"data": {"source": "s3://b/d"}, "stepz": 1}}, "did you mean 'steps'"),
        ({"highres": {"from": {"job": "high"}, "steps": 10}}, "jobs wait for each other: high → high"),
        ({"highres": {"from": {"job": "data"}, "steps": 10}}, "'data' is a pack job"),
        ({"highres": {"from": {"job": "NOT A NAME"}, "steps": 10}}, "is not a job name"),
        ({**PRE, "compute": {"workers": 3}}, "globalBatch"),
    ],
)
def test_bad_documents_are_told(spec: Any, words: str) -> None:
    bad = body("high", spec)
    reading = documents(bad, body("data", {"pack": {"source": "/x"}})).read(bad)
    assert reading.job is None
    assert words in reading.problem
    assert "\n" not in reading.problem


def test_a_cycle_is_told_by_each_member() -> None:
    one = body("one", {"highres": {"from": {"job": "two"}, "steps": 10}})
    two = body("two", {"highres": {"from": {"job": "one"}, "steps": 10}})
    child = body("child", {"highres": {"from": {"job": "two"}, "steps": 10}})
    here = documents(one, two, child)
    assert "one → two → one" in here.read(one).problem
    assert "two → one → two" in here.read(two).problem
    assert here.read(child).problem == ""  # it waits for a parent that has a problem


def test_labels_of_tools_are_no_tags() -> None:
    reading = documents().read(body("pre", PRE, labels={"dinoctl.io/x": "1", "team": "vision"}))
    assert reading.job is not None
    assert dict(reading.job.labels) == {"team": "vision"}


def snapshot(spec: dict[str, Any], *, hash_: str | None = None) -> Snapshot:
    job = documents().read(body("pre", spec)).job
    assert job is not None
    made = Snapshot("run-0001", job, spec).body(body("pre", spec))
    if hash_ is not None:
        made["data"]["hash"] = hash_
    found = read_snapshot(made)
    assert found is not None
    return found


def test_what_has_begun_stays_as_it_was() -> None:
    """Another dinoctl may resolve the same document to another one; the snapshot says what runs."""
    old = snapshot(PRE, hash_="hash of an older dinoctl")
    here = documents(body("pre", PRE), begun={"pre": old})
    assert here.read(body("pre", PRE)).job == old.job
    resized = {**PRE, "compute": {"workers": 2}, "suspend": True}
    job = here.read(body("pre", resized, generation=2)).job
    assert job is not None
    assert job.spec_hash == "hash of an older dinoctl"
    assert (job.spec.compute.workers, job.spec.suspend) == (2, True)
    changed = {"pretrain": {**PRE["pretrain"], "steps": 200}}
    job = here.read(body("pre", changed, generation=3)).job
    assert job is not None
    assert job.spec_hash != "hash of an older dinoctl"


def test_children_resolve_from_what_their_parent_runs() -> None:
    old = snapshot(PRE, hash_="hash of an older dinoctl")
    fresh = documents(body("pre", PRE)).read(body("high", HIGH)).job
    bound = documents(body("pre", PRE), begun={"pre": old}).read(body("high", HIGH)).job
    assert fresh is not None
    assert bound is not None
    assert fresh.spec_hash != bound.spec_hash


def test_a_begun_document_that_breaks_keeps_what_had_begun() -> None:
    old = snapshot(PRE)
    reading = documents(begun={"pre": old}).read(body("pre", {"pretrain": {"steps": "many"}}))
    assert reading.job is None
    assert reading.begun == old.job
    assert reading.problem


@pytest.mark.parametrize("key", ["spec.json", "digest", "hash", "life", "document.json", "parents"])
def test_a_damaged_snapshot_counts_as_missing(key: str) -> None:
    job = documents().read(body("pre", PRE)).job
    assert job is not None
    made = Snapshot("run-0001", job, PRE).body(body("pre", PRE))
    assert read_snapshot(made) is not None
    del made["data"][key]
    assert read_snapshot(made) is None
    assert read_snapshot({"data": {"spec.json": "{", "digest": ""}}) is None
    assert read_snapshot(None) is None


def test_parents_of_anything() -> None:
    assert parents_of(body("x", HIGH)) == ("pre",)
    assert parents_of(body("x", {"a": [{"job": "b"}, {"job": 5}], "job": "c"})) == ("b", "c")
    assert parents_of({"metadata": {}}) == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(
    st.sampled_from(["pretrain", "highres", "pack", "gate", "compute", "policy", "suspend", "profile", "storage"]),
    json_values | st.fixed_dictionaries({"from": st.fixed_dictionaries({"job": json_values}), "steps": json_values}),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(sections | json_values)
def test_no_object_breaks_the_reader(spec: Any) -> None:
    reading = documents().read(body("x", spec))
    assert (reading.job is None) == bool(reading.problem)


def test_a_lost_snapshot_is_looked_for_again() -> None:
    """A reading without it is none to be remembered."""
    old, life = snapshot(PRE, hash_="hash of an older dinoctl"), {"beganAt": 1.0, "firstAttempt": 1}
    pre = {**body("pre", PRE), "status": {"lifecycle": {**life, "specHash": old.job.spec_hash}}}
    memo = Memo()
    assert documents(pre, memo=memo).read(pre).begun is None
    assert documents(pre, begun={"pre": old}, memo=memo).read(pre).begun == old.job
    assert documents(pre, memo=memo).read(pre).begun == old.job, "what a life began with is read once"


def test_looks_in_turns_find_some_readings_in_a_memo_that_is_too_small() -> None:
    memo, reading = Memo(size=50), Reading(None, "a problem")
    found = 0
    for _ in range(20):
        for number in range(100):
            found += memo.get((number,)) is not None
            memo.put((number,), reading)
    held = sum(memo.get((number,)) is not None for number in range(100))
    assert held == 50
    assert found > 300, "the oldest of a full memo is the one that is wanted next"
