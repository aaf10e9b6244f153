"""Whatever is done to a document, the answer is jobs or a SpecError with printable lines; never another exception."""

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve
from dinoctl.spec.yamldoc import read_yaml

JOBS = Path(__file__).parents[3] / "jobs"
DOCUMENTS = [
    [doc.data for doc in read_yaml((JOBS / name).read_text(), name)]
    for name in ("digits.yaml", "dinov2_family.yaml", "vitl16_in1k_short.yaml", "vitg_highres.yaml")
]
WORDS = st.sampled_from(
    ["job", "uri", "model", "source", "from", "data", "steps", "knn", "local", "highres", "distill", "digits-pack",
     "digits-highres", "family-vitg", "custom", "ddp", "models:/a@b", "s3://b", "5d", "", "\ud7ff\n", "<job>", "a: b"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1000),
    st.sampled_from([2**62, 2**63, 10**400, -(2**63)]),
    st.floats(),
    WORDS,
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> list[Any]:
    documents = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(1, 4))):
        *above, key = draw(st.sampled_from(places(documents)[1:] or [(0,)]))
        parent = documents
        for step in above:
            parent = parent[step]
        if draw(st.booleans()) or not parent:
            if isinstance(parent, dict) and draw(st.booleans()):
                key = draw(WORDS)
            if isinstance(parent, dict) or parent:
                parent[key] = draw(VALUES)
        else:
            del parent[key]
    return documents


def accept(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
        problems = told()
    assert all(str(problem).isprintable() for problem in problems), problems


def told() -> list[Problem]:
    try:
        resolve(load(["-"]))
    except SpecError as error:
        return error.problems or [Problem("", 0, 0, "", "\n")]
    return []


def written(documents: list[Any]) -> str:
    """JSON is YAML (NaN and Infinity become text), and quick to write."""
    return "\n---\n".join(json.dumps(document) for document in documents)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mutated())
def test_a_mutated_document(documents: list[Any]) -> None:
    accept(written(documents))


LINES = (JOBS / "digits.yaml").read_text().splitlines(keepends=True)[:40]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutilated_text(data: st.DataObject) -> None:
    text = "".join(data.draw(st.permutations(LINES)) if data.draw(st.booleans()) else LINES)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 30)))
    middle = data.draw(st.text(alphabet=":-[]{}&*!|>'\"%@`,?#~ \n\taé0.", max_size=8))
    accept(text[:start] + middle + text[stop:])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    accept(text.encode("utf-8", "replace").decode())
