"""The API server in memory keeps the same contract as the real one, and what only it is asked."""

import pytest

from dinoctl.cluster.errors import Forbidden, Gone, NotFound
from dinoctl.cluster.resources import CONFIGMAPS, PODS
from support.kube.contract import SPACE, ApiContract, config_map
from support.kube.memory import Call, MemoryApi, MemoryServer


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def api(server: MemoryServer) -> MemoryApi:
    return MemoryApi(server)


class TestMemory(ApiContract):
    @pytest.fixture
    def client(self, server: MemoryServer) -> MemoryApi:
        return MemoryApi(server)

    @pytest.fixture
    def space(self) -> str:
        return SPACE

    @pytest.fixture
    def other(self, server: MemoryServer) -> MemoryApi:
        return MemoryApi(server, manager="other")

    def test_an_unknown_kind_is_told_apart(self, client, server) -> None:
        server.missing.add(PODS)
        with pytest.raises(NotFound) as caught:
            client.list(PODS, SPACE)
        assert caught.value.missing_kind


def _owned(name: str, owner: dict) -> dict:
    reference = {"uid": owner["metadata"]["uid"], "name": owner["metadata"]["name"], "kind": "ConfigMap"}
    return config_map(name, ownerReferences=[reference | {"apiVersion": "v1", "controller": True}])


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_what_a_deleted_object_owns_goes_with_it(api, server, propagation) -> None:
    owner = api.create(CONFIGMAPS, SPACE, config_map("owner"))
    child = api.create(CONFIGMAPS, SPACE, _owned("child", owner))
    api.create(CONFIGMAPS, SPACE, _owned("grandchild", child))
    api.create(CONFIGMAPS, SPACE, config_map("bystander"))
    api.delete(CONFIGMAPS, SPACE, "owner", propagation=propagation)
    assert [key[2] for key in server.objects] == ["bystander"]


def test_foreground_deletion_waits_for_what_is_owned(api, server) -> None:
    owner = api.create(CONFIGMAPS, SPACE, config_map("owner"))
    api.create(PODS, SPACE, _owned("pod", owner) | {"spec": {"nodeName": "n1"}})
    api.delete(CONFIGMAPS, SPACE, "owner", propagation="Foreground")
    assert "deletionTimestamp" in api.get(CONFIGMAPS, SPACE, "owner")["metadata"]
    assert "deletionTimestamp" in api.get(PODS, SPACE, "pod")["metadata"]
    server.end_pod(SPACE, "pod")
    assert server.objects == {}


def test_a_pod_lives_through_its_grace_but_not_without(api, server) -> None:
    for name in ("soft", "hard"):
        api.create(PODS, SPACE, {"metadata": {"name": name}, "spec": {"nodeName": "n1"}})
    api.delete(PODS, SPACE, "soft")
    api.delete(PODS, SPACE, "hard", grace=0)
    assert [key[2] for key in server.objects] == ["soft"]
    api.patch(PODS, SPACE, "soft", {"status": {"phase": "Succeeded"}}, subresource="status")
    assert [key[2] for key in server.objects] == ["soft"]


def test_a_namespace_that_ends_takes_nothing_new(api, server) -> None:
    api.create(CONFIGMAPS, SPACE, config_map("held", finalizers=["x/y"]))
    api.create(CONFIGMAPS, SPACE, config_map("free"))
    server.end_namespace(SPACE)
    assert [key[2] for key in server.objects] == ["held"]
    with pytest.raises(Forbidden, match="terminated"):
        api.create(CONFIGMAPS, SPACE, config_map("late"))


def test_watches_that_are_too_old(api, server) -> None:
    api.create(CONFIGMAPS, SPACE, config_map("a"))
    server.compact()
    with pytest.raises(Gone):
        api.watch(CONFIGMAPS, SPACE, since="0")


def test_bookmarks_and_drops(api, server) -> None:
    watch = api.watch(CONFIGMAPS, SPACE, since="0")
    api.create(PODS, SPACE, {"metadata": {"name": "p"}})
    server.bookmark()
    assert next(watch) == ("BOOKMARK", {"metadata": {"resourceVersion": "1"}})
    server.drop_watches()
    assert list(watch) == []


def test_the_hook_is_before_and_after_every_request(server) -> None:
    seen: list[Call] = []

    def hook(call: Call) -> None:
        seen.append(call)
        if call.when == "after" and call.name == "lost":
            raise TimeoutError

    api = MemoryApi(server, hook)
    with pytest.raises(TimeoutError):
        api.create(CONFIGMAPS, SPACE, config_map("lost"))
    assert [(call.verb, call.when, call.writes) for call in seen] == [
        ("create", "before", True),
        ("create", "after", True),
    ]
    assert len(server.objects) == 1
