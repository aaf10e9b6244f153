"""The shipped documents: all of them validate, resolve, and say where every value comes from."""

import json
from pathlib import Path
from typing import Any

import pytest

from dinoctl.cli.render import resolved_yaml
from dinoctl.spec.job import JobSpec
from dinoctl.spec.load import load
from dinoctl.spec.resolve import resolve

JOBS = Path(__file__).parents[3] / "jobs"
FILES = sorted(JOBS.glob("*.yaml"))
PROMISED = [
    "digits", "dinov2_family", "imagenet_evaluate", "vitb_distill", "vitg_highres", "vitg_pretrain",
    "vitl16_in1k_short", "vitl_distill", "vits_distill",
]  # fmt: skip


def test_all_are_there() -> None:
    assert {path.stem for path in FILES} >= set(PROMISED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_editors_find_the_schema(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=dinojob.schema.json\n")
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_resolves_to_something_that_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    jobs = resolve(load([str(path)]))
    target = tmp_path / "resolved.yaml"
    target.write_text("---\n".join(resolved_yaml(job, origins=True) for job in jobs))
    again = {job.name: job for job in resolve(load([str(target)]))}
    assert {job.name: (job.to_dict(), job.spec_hash) for job in jobs} == {
        name: (job.to_dict(), job.spec_hash) for name, job in again.items()
    }
    for job in jobs:
        text = json.dumps(job.to_dict()["spec"])
        assert JobSpec.model_validate(json.loads(text), by_alias=True, by_name=False) == job.spec


def leaves(node: Any, path: str) -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_leaf_has_an_origin(path: Path) -> None:
    for job in resolve(load([str(path)])):
        spec = job.to_dict()["spec"]
        if "pack" in spec:
            spec["pack"]["splits"] = None  # names of the user's own: the mapping as a whole has an origin
        missing = [leaf for leaf in leaves(spec, "spec") if leaf not in job.origins]
        assert missing == []
        assert all(origin.startswith(("default: ", "derived: ", str(path))) for origin in job.origins.values())


def test_all_together_are_one_valid_set() -> None:
    names = [job.name for job in resolve(load([str(JOBS)]))]
    assert len(names) == len(set(names))


def test_the_family_is_one_graph() -> None:
    parents = {job.name: job.parents for job in resolve(load([str(JOBS / "dinov2_family.yaml")]))}
    children = ("family-vitg-highres", "family-vitl", "family-vitb", "family-vits")
    assert parents == {"family-vitg": (), **dict.fromkeys(children, ("family-vitg",))}


def test_a_pretraining_is_a_few_lines() -> None:
    lines = (JOBS / "vitg_pretrain.yaml").read_text().splitlines()
    assert sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines) <= 16
