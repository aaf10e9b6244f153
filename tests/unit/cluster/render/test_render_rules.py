"""Rules that hold for every profile and every size."""

from __future__ import annotations

import shlex
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from dinoctl.cluster.render import Refused, check
from dinoctl.cluster.render.layout import alone
from dinoctl.spec.profile import Drain, Network, Pods, Pool, Profile, Topology
from dinoctl.stages import STAGES
from support.rendering import IMAGE, PROFILES, attempt, jobs, rendered, resized

VITG = jobs("vitg_pretrain.yaml")[0]
ODD = "'; touch /tmp/x; $(id) `id` \"\n"
_text = st.one_of(st.just(ODD), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
_cpu = st.sampled_from(["100m", "1", "2.5", "1500m"])
_memory = st.sampled_from(["512Mi", "4Gi", "1.5Gi", "2000000000", "3G"])


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    each = draw(st.integers(1, 8))
    names = draw(st.lists(st.sampled_from(["a", "b-2", "reserved", "spot", "x" * 20]), unique=True, max_size=5))
    limits = [each * draw(st.integers(1, 20)) for _ in names]
    pools = [Pool(name=name, max_workers=most) for name, most in zip(names, limits, strict=True)]
    if pools and draw(st.booleans()):
        pools[-1] = pools[-1].model_copy(update={"max_workers": None})
    rdma = draw(st.booleans())
    worker = draw(st.floats(1, 100))
    return Profile(
        image=IMAGE,
        storage="s3://outputs/",
        tracking_uri="http://mlflow",
        queue=draw(st.sampled_from([None, "vision"])),
        pools=pools,
        workers_per_pod=each,
        memory_per_worker=draw(_memory),
        head=Pods(cpu=draw(_cpu), memory=draw(_memory)),
        submitter=Pods(cpu=draw(_cpu), memory=draw(_memory)),
        env={"NOTE": draw(_text)},
        account_annotations={"note": draw(_text)},
        topology=draw(st.sampled_from([None, Topology(level="rack")])),
        network=Network(interface=draw(_text), rdma_resource="rdma/hca" if rdma else None),
        security="rdma" if rdma else "restricted",
        drain=Drain(worker=worker, head=worker * 1.5, grace=worker * 2),
    )


sizes = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 1000),
        "gpus_per_worker": st.sampled_from([0, 1]),
        "cpus_per_worker": st.floats(0.05, 16).map(lambda value: round(value, 3)),
    }
)


@settings(max_examples=150, deadline=None)
@given(profile=profiles(), size=sizes, number=st.integers(1, 99_999))
def test_every_rank_has_its_place(profile: Profile, size: dict[str, Any], number: int) -> None:
    spec = resized(VITG, **size)
    if profile.pools and sum(pool.max_workers or 10**6 for pool in profile.pools) < spec.compute.workers:
        with pytest.raises(Refused, match=r"^[^\n]+; ask for at most \d+$"):
            check(spec, profile)
        return
    objects = rendered(attempt(VITG, number, spec=spec), profile)
    groups = _cluster(objects)["workerGroupSpecs"]
    assert sum(group["replicas"] * _ranks(group) for group in groups) == spec.compute.workers
    assert 1 <= len(groups) <= 6
    assert len({group["groupName"] for group in groups}) == len(groups)
    for group in groups:
        _fits(group, profile, size)
    _runs_what_is_fixed(objects)


def _fits(group: dict[str, Any], profile: Profile, size: dict[str, Any]) -> None:
    """Ray has room for exactly these ranks, and the pod for what Ray has."""
    ranks = _ranks(group)
    assert 1 <= ranks <= profile.workers_per_pod
    asked = group["template"]["spec"]["containers"][0]["resources"]
    params = group["rayStartParams"]
    cores = Decimal(str(size["cpus_per_worker"])) * ranks
    assert cores <= parse_quantity(asked["requests"]["cpu"]) < cores + Decimal("0.001")
    assert cores <= int(params["num-cpus"]) < cores + 1
    assert int(params["num-gpus"]) == size["gpus_per_worker"] * ranks == int(asked["limits"].get("nvidia.com/gpu", 0))
    assert parse_quantity(asked["limits"]["memory"]) == parse_quantity(profile.memory_per_worker) * ranks
    assert {**asked["limits"], "cpu": asked["requests"]["cpu"]} == asked["requests"]
    assert len(group["groupName"]) <= 25


def _runs_what_is_fixed(objects: list[dict[str, Any]]) -> None:
    """No text of a profile or document is in anything that a shell sees."""
    spec = objects[-1]["spec"]
    assert spec["entrypoint"] == "python -m dinoctl.worker --job /etc/dinoctl/attempt.json"
    cluster = spec["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for value in group["rayStartParams"].values():
            assert len(shlex.split(value)) == 1
            assert not set("$`;&|\\\n") & set(value)
        container = group["template"]["spec"]["containers"][0]
        assert not {"command", "args"} & set(container)
        line = container["lifecycle"]["preStop"]["exec"]["command"][2]
        assert set(line) <= set("abcdefghijklmnopqrstuvwxyz/.-> &")
    assert not {"runtimeEnvYAML", "metadata"} & set(spec)


def _cluster(objects: list[dict[str, Any]]) -> dict[str, Any]:
    cluster: dict[str, Any] = objects[-1]["spec"]["rayClusterSpec"]
    return cluster


def _ranks(group: dict[str, Any]) -> int:
    name, count = group["rayStartParams"]["resources"].strip("'{}").split(": ")
    assert name == '"rank"'
    return int(count)


@pytest.mark.parametrize("name", PROFILES)
def test_pods_are_restricted(name: str) -> None:
    """As Pod Security's restricted level demands; ``rdma`` differs by one capability of the workers."""
    for template in _templates(rendered(attempt(VITG), PROFILES[name])):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            rdma = name == "fabric" and template["metadata"]["labels"]["dinoctl.io/role"] == "worker"
            assert security["capabilities"].get("add", []) == (["IPC_LOCK"] if rdma else [])


def test_the_submitter_has_no_credentials() -> None:
    submitter = rendered(attempt(VITG), PROFILES["a100"])[-1]["spec"]["submitterPodTemplate"]["spec"]
    assert "secretKeyRef" not in str(submitter)
    assert "serviceAccountToken" not in str(submitter)


def test_ours_win_over_the_profile_where_they_must() -> None:
    labels = {"dinoctl.io/job": "other", "dinoctl.io/role": "other"}
    objects = rendered(attempt(VITG), PROFILES["a100"].model_copy(update={"labels": labels}))
    for template in _templates(objects):
        assert template["metadata"]["labels"]["dinoctl.io/job"] == "vitg-pretrain"
        assert template["metadata"]["labels"]["dinoctl.io/role"] in ("head", "worker", "submitter")


def _templates(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = objects[-1]["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [spec["submitterPodTemplate"], *(group["template"] for group in groups)]


def test_too_many_workers_are_refused() -> None:
    few = PROFILES["a100"].model_copy(update={"max_workers": 128})
    with pytest.raises(Refused, match=r"compute\.workers is 256, and the profile allows 128; ask for at most 128"):
        check(VITG.spec, few)
    small = PROFILES["fabric"].model_copy(update={"pools": [Pool(name="a", max_workers=64)]})
    with pytest.raises(Refused, match=r"compute\.workers is 256, and the profile's pools hold 64"):
        check(VITG.spec, small)


def test_a_document_beyond_a_config_map_is_refused() -> None:
    long = attempt(VITG).__class__(**{**vars(attempt(VITG)), "storage_uri": "s3://outputs/" + "x" * 2**20})
    with pytest.raises(Refused, match="a ConfigMap holds"):
        rendered(long, PROFILES["a100"])


def test_the_driver_works_alone_where_the_stage_has_no_group() -> None:
    for file in ("digits.yaml", "vitg_pretrain.yaml", "imagenet_evaluate.yaml"):
        for job in jobs(file):
            assert alone(job.spec) is not STAGES[job.kind].distributed
            workers = _cluster(rendered(attempt(job), PROFILES["cpu"]))["workerGroupSpecs"]
            assert bool(workers) is not alone(job.spec)


def test_the_role_is_for_one_config_map() -> None:
    role, progress = (rendered(attempt(VITG), PROFILES["a100"])[index] for index in (1, 3))
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["dinojob-vitg-pretrain-progress"]}
    assert role["rules"] == [{**rule, "verbs": ["get", "patch"]}]
    assert progress["metadata"]["name"] == "dinojob-vitg-pretrain-progress"
    assert "data" not in progress


def test_excluded_nodes_by_their_own_names() -> None:
    objects = rendered(attempt(VITG), PROFILES["a100"], ("node-b", "node-a", "node-b"))
    for template in _templates(objects):
        affinity = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = affinity["nodeSelectorTerms"]
        assert [field["values"] for field in term["matchFields"]] == [["node-a"], ["node-b"]]
