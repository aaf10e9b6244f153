"""What any ``Api`` must do. The same tests run on the server in memory (tests/unit) and a real one (tests/kube)."""

import threading
from typing import Any

import pytest

from dinoctl.cluster.errors import Conflict, Exists, Invalid, NotFound
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.resources import CONFIGMAPS, EVENTS, PODS, Resource

SPACE = "default"
"""Namespace of the tests that make their own server."""


def config_map(name: str, data: dict[str, str] | None = None, **meta: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}, "data": data or {}}


class ApiContract:
    """Subclasses give the fixtures ``client``, ``other`` (another field manager's on the same server) and ``space``."""

    def test_a_name_is_created_once(self, space: str, client: Api) -> None:
        made = client.create(CONFIGMAPS, space, config_map("once", {"a": "1"}))
        assert made["metadata"]["uid"]
        assert made["data"] == {"a": "1"}
        with pytest.raises(Exists):
            client.create(CONFIGMAPS, space, config_map("once"))

    def test_what_is_not_there(self, space: str, client: Api) -> None:
        with pytest.raises(NotFound) as caught:
            client.get(CONFIGMAPS, space, "absent")
        assert not caught.value.missing_kind
        assert f"{space}/absent" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(NotFound):
            client.patch(CONFIGMAPS, space, "absent", {"data": {}})
        client.delete(CONFIGMAPS, space, "absent")

    def test_an_unknown_kind_is_told_apart(self, space: str, client: Api) -> None:
        with pytest.raises(NotFound) as caught:
            client.list(Resource("nobody.io", "v1", "things", "Thing"), space)
        assert caught.value.missing_kind

    def test_compare_and_set(self, space: str, client: Api) -> None:
        first = client.create(CONFIGMAPS, space, config_map("cas", {"n": "1"}))
        version = {"resourceVersion": first["metadata"]["resourceVersion"]}
        second = client.patch(CONFIGMAPS, space, "cas", {"metadata": version, "data": {"n": "2"}})
        assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        with pytest.raises(Conflict):
            client.patch(CONFIGMAPS, space, "cas", {"metadata": version, "data": {"n": "3"}})
        assert client.get(CONFIGMAPS, space, "cas")["data"] == {"n": "2"}

    def test_a_patch_that_changes_nothing_is_no_change(self, space: str, client: Api) -> None:
        first = client.create(CONFIGMAPS, space, config_map("same", {"n": "1"}))
        again = client.patch(CONFIGMAPS, space, "same", {"data": {"n": "1"}})
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    def test_apply_owns_what_it_sets_and_nothing_else(self, space: str, client: Api, other: Api) -> None:
        client.apply(CONFIGMAPS, space, config_map("ssa", {"mine": "1", "old": "1"}))
        other.apply(CONFIGMAPS, space, config_map("ssa", {"theirs": "1"}))
        now = client.apply(CONFIGMAPS, space, config_map("ssa", {"mine": "2"}))
        assert now["data"] == {"mine": "2", "theirs": "1"}

    def test_apply_against_another_manager(self, space: str, client: Api, other: Api) -> None:
        client.apply(CONFIGMAPS, space, config_map("fight", {"x": "1"}))
        with pytest.raises(Conflict):
            other.apply(CONFIGMAPS, space, config_map("fight", {"x": "2"}), force=False)
        assert other.apply(CONFIGMAPS, space, config_map("fight", {"x": "2"}))["data"] == {"x": "2"}

    def test_a_dry_run_writes_nothing(self, space: str, client: Api) -> None:
        assert client.apply(CONFIGMAPS, space, config_map("dry", {"x": "1"}), dry_run=True)["data"] == {"x": "1"}
        with pytest.raises(NotFound):
            client.get(CONFIGMAPS, space, "dry")

    def test_an_immutable_config_map_stays(self, space: str, client: Api) -> None:
        client.create(CONFIGMAPS, space, config_map("fixed", {"x": "1"}) | {"immutable": True})
        with pytest.raises(Invalid):
            client.apply(CONFIGMAPS, space, config_map("fixed", {"x": "2"}))

    def test_deletion_of_one_object_spares_its_successor(self, space: str, client: Api) -> None:
        first = client.create(CONFIGMAPS, space, config_map("reborn"))
        client.delete(CONFIGMAPS, space, "reborn", uid=first["metadata"]["uid"])
        second = client.create(CONFIGMAPS, space, config_map("reborn"))
        client.delete(CONFIGMAPS, space, "reborn", uid=first["metadata"]["uid"])
        assert client.get(CONFIGMAPS, space, "reborn")["metadata"]["uid"] == second["metadata"]["uid"]

    def test_finalizers_hold(self, space: str, client: Api) -> None:
        client.create(CONFIGMAPS, space, config_map("held", finalizers=["dinoctl.io/tracking"]))
        client.delete(CONFIGMAPS, space, "held")
        held = client.get(CONFIGMAPS, space, "held")
        assert held["metadata"]["deletionTimestamp"]
        client.patch(CONFIGMAPS, space, "held", {"metadata": {"finalizers": []}})
        with pytest.raises(NotFound):
            client.get(CONFIGMAPS, space, "held")

    def test_status_and_spec_are_written_apart(self, space: str, client: Api) -> None:
        container = {"name": "main", "image": "localhost/none:1"}
        account = {"automountServiceAccountToken": False}
        body = {"metadata": {"name": "apart"}, "spec": {"containers": [container], **account}}
        client.create(PODS, space, body)
        client.patch(PODS, space, "apart", {"status": {"message": "no"}})
        assert "message" not in (client.get(PODS, space, "apart").get("status") or {})
        client.patch(PODS, space, "apart", {"status": {"message": "yes"}}, subresource="status")
        assert client.get(PODS, space, "apart")["status"]["message"] == "yes"
        client.delete(PODS, space, "apart", grace=0)

    def test_names_made_by_the_server(self, space: str, client: Api) -> None:
        body = {"metadata": {"generateName": "told-"}, "involvedObject": {"namespace": space}, "reason": "Test"}
        made = {client.create(EVENTS, space, body)["metadata"]["name"] for _ in range(2)}
        assert len(made) == 2

    def test_lists_by_label(self, space: str, client: Api) -> None:
        for name, labels in (("l-a", {"k": "a"}), ("l-b", {"k": "b", "x": "1"}), ("l-c", {})):
            client.create(CONFIGMAPS, space, config_map(name, labels={**labels, "t": "lists"}))
        for selector, expected in (
            ("t=lists,k=a", "l-a"),
            ("t=lists,k", "l-a l-b"),
            ("t=lists,!k", "l-c"),
            ("t=lists,k in (a, b),x!=1", "l-a"),
            ("t=lists,k notin (a)", "l-b l-c"),
        ):
            found, version = client.list(CONFIGMAPS, space, labels=selector)
            assert " ".join(item["metadata"]["name"] for item in found) == expected, selector
            assert int(version) > 0
        names, _ = client.list(
            CONFIGMAPS, None, labels="t=lists,k=a", keep=lambda body: {"name": body["metadata"]["name"]}
        )
        assert names == [{"name": "l-a"}]

    def test_a_watch_sees_what_follows(self, space: str, client: Api) -> None:
        labels = {"labels": {"t": "watch"}}
        client.create(CONFIGMAPS, space, config_map("w-a", **labels))
        _, since = client.list(CONFIGMAPS, space, labels="t=watch")
        watch = client.watch(CONFIGMAPS, space, labels="t=watch", since=since)
        client.create(CONFIGMAPS, space, config_map("w-b", **labels))
        client.create(CONFIGMAPS, space, config_map("w-other"))
        client.patch(CONFIGMAPS, space, "w-a", {"data": {"n": "1"}})
        client.patch(CONFIGMAPS, space, "w-a", {"data": {"n": "2"}})
        client.patch(CONFIGMAPS, space, "w-b", {"metadata": {"labels": {"t": None}}})
        client.delete(CONFIGMAPS, space, "w-a")
        seen = [(kind, body["metadata"]["name"]) for kind, body in (next(watch) for _ in range(5))]
        watch.close()
        assert seen == [
            ("ADDED", "w-b"),
            ("MODIFIED", "w-a"),
            ("MODIFIED", "w-a"),
            ("DELETED", "w-b"),
            ("DELETED", "w-a"),
        ]

    def test_a_silent_watch_is_closed_from_another_thread(self, space: str, client: Api) -> None:
        _, since = client.list(CONFIGMAPS, space, labels="t=silent")
        watch = client.watch(CONFIGMAPS, space, labels="t=silent", since=since)
        threading.Timer(0.2, watch.close).start()
        assert list(watch) == []
