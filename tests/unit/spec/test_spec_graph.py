"""References between jobs."""

import itertools

import pytest
from spec_documents import PRETRAIN, Workshop, document

from dinoctl.spec.graph import parents, topological

PACK = document("data", "pack: {source: builtin://digits}")
TEACHER = document("teacher", "pretrain: {data: {source: {job: data}}}")


def highres(name: str, parent: str) -> str:
    return document(name, f"highres: {{from: {{job: {parent}}}}}")


def test_a_cycle_is_shown_whole(workshop: Workshop) -> None:
    lines = workshop.problems(highres("a", "b"), highres("b", "c"), highres("c", "a"))
    (line,) = lines
    assert "jobs wait for each other: " in line
    assert line.endswith("; remove one of these references")
    shown = line.split("each other: ")[1].split(";")[0].split(" → ")
    assert shown[0] == shown[-1]
    assert set(shown) == {"a", "b", "c"}
    follows = {"a": "b", "b": "c", "c": "a"}
    assert all(follows[one] == two for one, two in itertools.pairwise(shown))
    number = {"a": 5, "b": 11, "c": 17}[shown[0]]
    assert line.startswith(f"job.yaml:{number}:20: spec.highres.from.job:")


def test_a_job_that_names_itself(workshop: Workshop) -> None:
    (line,) = workshop.problems(highres("a", "a"))
    assert "waits for itself: a → a" in line


def test_an_unknown_reference_has_a_suggestion(workshop: Workshop) -> None:
    assert workshop.problems(PACK, document("a", "pretrain: {data: {source: {job: dta}}}")) == [
        "job.yaml:11:30: spec.pretrain.data.source.job: no job named 'dta'; did you mean 'data'?"
    ]
    (line,) = workshop.problems(PACK, document("a", "pretrain: {data: {source: {job: zzz}}}"))
    assert line.endswith("no job named 'zzz'; jobs here: a, data")


def test_a_name_used_twice_names_the_other_place(workshop: Workshop) -> None:
    assert workshop.problems(PACK, PACK) == [
        "job.yaml:9:12: metadata.name: a job named 'data' is already defined at job.yaml:3; rename one of them"
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "pretrain: {data: {source: {job: teacher}}}",
            "needs a dataset, but 'teacher' is a pretrain job; name a pack job",
        ),
        ("pretrain: {data: {mixture: [{source: {job: teacher}}]}}", "mixture[0].source.job: needs a dataset"),
        (
            "highres: {from: {job: data}}",
            "needs a model, but 'data' is a pack job; name a pretrain, highres, distill job",
        ),
        ("distill: {teacher: {job: data}, data: {source: x}, model: {arch: vit_small}}", "teacher.job: needs a model"),
        (
            "evaluate: {model: {job: data}, protocols: {knn: {dataset: {job: data}}}}",
            "evaluate.model.job: needs a model",
        ),
        (
            "evaluate: {model: {job: teacher}, protocols: {knn: {dataset: {job: teacher}}}}",
            "dataset.job: needs a dataset",
        ),
        (f"{PRETRAIN}\ngate: {{dataset: {{job: teacher}}}}", "spec.gate.dataset.job: needs a dataset"),
    ],
)
def test_a_parent_of_the_wrong_kind(workshop: Workshop, spec: str, said: str) -> None:
    (line,) = workshop.problems(PACK, TEACHER, document("a", spec))
    assert said in line


def test_all_bad_references_are_told_at_once(workshop: Workshop) -> None:
    lines = workshop.problems(highres("a", "nowhere"), highres("b", "elsewhere"), highres("c", "c"))
    assert len(lines) == 3


def test_parents_come_first_in_any_order_of_the_documents(workshop: Workshop) -> None:
    texts = [PACK, TEACHER, highres("big", "teacher"), highres("bigger", "big")]
    for order in itertools.permutations(texts):
        names = [job.name for job in topological(workshop.load(*order))]
        assert names == ["data", "teacher", "big", "bigger"]


def test_parents_of_a_job_are_all_it_names_once_and_sorted(workshop: Workshop) -> None:
    gate = "gate: {dataset: {job: data}}"
    mixed = "pretrain: {data: {mixture: [{source: {job: data}}, {source: {job: b}}, {source: x}]}}"
    jobs = workshop.load(document("a", f"{mixed}\n{gate}"), PACK, document("b", "pack: {source: x}"))
    assert parents(jobs[0]) == ("b", "data")
