"""What any ``Api`` must do. The same tests run on the server in memory (tests/unit) and a real one (tests/kube)."""

import threading
from typing import Any

import pytest

from dinoctl.cluster.errors import Conflict, Exists, Invalid, NotFound
from dinoctl.cluster.protocol import Api, Object
from dinoctl.cluster.resources import CONFIGMAPS, EVENTS, PODS, Resource

SPACE = "default"


def config_map(name: str, data: dict[str, str] | None = None, **meta: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **meta}, "data": data or {}}


class ApiContract:
    """Subclasses give the fixtures ``api`` and ``other``: the same server under another field manager."""

    def test_a_name_is_created_once(self, api: Api) -> None:
        made = api.create(CONFIGMAPS, SPACE, config_map("once", {"a": "1"}))
        assert made["metadata"]["uid"]
        assert made["data"] == {"a": "1"}
        with pytest.raises(Exists):
            api.create(CONFIGMAPS, SPACE, config_map("once"))

    def test_what_is_not_there(self, api: Api) -> None:
        with pytest.raises(NotFound) as caught:
            api.get(CONFIGMAPS, SPACE, "absent")
        assert not caught.value.missing_kind
        assert "default/absent" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(NotFound):
            api.patch(CONFIGMAPS, SPACE, "absent", {"data": {}})
        api.delete(CONFIGMAPS, SPACE, "absent")

    def test_an_unknown_kind_is_told_apart(self, api: Api) -> None:
        with pytest.raises(NotFound) as caught:
            api.list(Resource("nobody.io", "v1", "things", "Thing"), SPACE)
        assert caught.value.missing_kind

    def test_compare_and_set(self, api: Api) -> None:
        first = api.create(CONFIGMAPS, SPACE, config_map("cas", {"n": "1"}))
        version = {"resourceVersion": first["metadata"]["resourceVersion"]}
        second = api.patch(CONFIGMAPS, SPACE, "cas", {"metadata": version, "data": {"n": "2"}})
        assert second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        with pytest.raises(Conflict):
            api.patch(CONFIGMAPS, SPACE, "cas", {"metadata": version, "data": {"n": "3"}})
        assert api.get(CONFIGMAPS, SPACE, "cas")["data"] == {"n": "2"}

    def test_a_patch_that_changes_nothing_is_no_change(self, api: Api) -> None:
        first = api.create(CONFIGMAPS, SPACE, config_map("same", {"n": "1"}))
        again = api.patch(CONFIGMAPS, SPACE, "same", {"data": {"n": "1"}})
        assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]

    def test_apply_owns_what_it_sets_and_nothing_else(self, api: Api, other: Api) -> None:
        api.apply(CONFIGMAPS, SPACE, config_map("ssa", {"mine": "1", "old": "1"}))
        other.apply(CONFIGMAPS, SPACE, config_map("ssa", {"theirs": "1"}))
        now = api.apply(CONFIGMAPS, SPACE, config_map("ssa", {"mine": "2"}))
        assert now["data"] == {"mine": "2", "theirs": "1"}

    def test_apply_against_another_manager(self, api: Api, other: Api) -> None:
        api.apply(CONFIGMAPS, SPACE, config_map("fight", {"x": "1"}))
        with pytest.raises(Conflict):
            other.apply(CONFIGMAPS, SPACE, config_map("fight", {"x": "2"}), force=False)
        assert other.apply(CONFIGMAPS, SPACE, config_map("fight", {"x": "2"}))["data"] == {"x": "2"}

    def test_a_dry_run_writes_nothing(self, api: Api) -> None:
        assert api.apply(CONFIGMAPS, SPACE, config_map("dry", {"x": "1"}), dry_run=True)["data"] == {"x": "1"}
        with pytest.raises(NotFound):
            api.get(CONFIGMAPS, SPACE, "dry")

    def test_an_immutable_config_map_stays(self, api: Api) -> None:
        api.create(CONFIGMAPS, SPACE, config_map("fixed", {"x": "1"}) | {"immutable": True})
        with pytest.raises(Invalid):
            api.apply(CONFIGMAPS, SPACE, config_map("fixed", {"x": "2"}))

    def test_deletion_of_one_object_spares_its_successor(self, api: Api) -> None:
        first = api.create(CONFIGMAPS, SPACE, config_map("reborn"))
        api.delete(CONFIGMAPS, SPACE, "reborn", uid=first["metadata"]["uid"])
        second = api.create(CONFIGMAPS, SPACE, config_map("reborn"))
        api.delete(CONFIGMAPS, SPACE, "reborn", uid=first["metadata"]["uid"])
        assert api.get(CONFIGMAPS, SPACE, "reborn")["metadata"]["uid"] == second["metadata"]["uid"]

    def test_finalizers_hold(self, api: Api) -> None:
        api.create(CONFIGMAPS, SPACE, config_map("held", finalizers=["dinoctl.io/tracking"]))
        api.delete(CONFIGMAPS, SPACE, "held")
        held = api.get(CONFIGMAPS, SPACE, "held")
        assert held["metadata"]["deletionTimestamp"]
        api.patch(CONFIGMAPS, SPACE, "held", {"metadata": {"finalizers": []}})
        with pytest.raises(NotFound):
            api.get(CONFIGMAPS, SPACE, "held")

    def test_status_and_spec_are_written_apart(self, api: Api) -> None:
        container = {"name": "main", "image": "localhost/none:1"}
        account = {"automountServiceAccountToken": False}
        body = {"metadata": {"name": "apart"}, "spec": {"containers": [container], **account}}
        api.create(PODS, SPACE, body)
        api.patch(PODS, SPACE, "apart", {"status": {"message": "no"}})
        assert "message" not in (api.get(PODS, SPACE, "apart").get("status") or {})
        api.patch(PODS, SPACE, "apart", {"status": {"message": "yes"}}, subresource="status")
        assert api.get(PODS, SPACE, "apart")["status"]["message"] == "yes"
        api.delete(PODS, SPACE, "apart", grace=0)

    def test_names_made_by_the_server(self, api: Api) -> None:
        body = {"metadata": {"generateName": "told-"}, "involvedObject": {"namespace": SPACE}, "reason": "Test"}
        made = {api.create(EVENTS, SPACE, body)["metadata"]["name"] for _ in range(2)}
        assert len(made) == 2

    def test_lists_by_label(self, api: Api) -> None:
        for name, labels in (("l-a", {"k": "a"}), ("l-b", {"k": "b", "x": "1"}), ("l-c", {})):
            api.create(CONFIGMAPS, SPACE, config_map(name, labels={**labels, "t": "lists"}))
        for selector, expected in (
            ("t=lists,k=a", "l-a"),
            ("t=lists,k", "l-a l-b"),
            ("t=lists,!k", "l-c"),
            ("t=lists,k in (a, b),x!=1", "l-a"),
            ("t=lists,k notin (a)", "l-b l-c"),
        ):
            found, version = api.list(CONFIGMAPS, SPACE, labels=selector)
            assert " ".join(item["metadata"]["name"] for item in found) == expected, selector
            assert int(version) > 0
        names, _ = api.list(
            CONFIGMAPS, None, labels="t=lists,k=a", keep=lambda body: {"name": body["metadata"]["name"]}
        )
        assert names == [{"name": "l-a"}]

    def test_a_watch_sees_what_follows(self, api: Api) -> None:
        labels = {"labels": {"t": "watch"}}
        api.create(CONFIGMAPS, SPACE, config_map("w-a", **labels))
        _, since = api.list(CONFIGMAPS, SPACE, labels="t=watch")
        watch = api.watch(CONFIGMAPS, SPACE, labels="t=watch", since=since)
        api.create(CONFIGMAPS, SPACE, config_map("w-b", **labels))
        api.create(CONFIGMAPS, SPACE, config_map("w-other"))
        api.patch(CONFIGMAPS, SPACE, "w-a", {"data": {"n": "1"}})
        api.patch(CONFIGMAPS, SPACE, "w-a", {"data": {"n": "2"}})
        api.patch(CONFIGMAPS, SPACE, "w-b", {"metadata": {"labels": {"t": None}}})
        api.delete(CONFIGMAPS, SPACE, "w-a")
        seen = [(kind, body["metadata"]["name"]) for kind, body in (next(watch) for _ in range(5))]
        watch.close()
        assert seen == [
            ("ADDED", "w-b"),
            ("MODIFIED", "w-a"),
            ("MODIFIED", "w-a"),
            ("DELETED", "w-b"),
            ("DELETED", "w-a"),
        ]

    def test_a_silent_watch_is_closed_from_another_thread(self, api: Api) -> None:
        _, since = api.list(CONFIGMAPS, SPACE, labels="t=silent")
        watch = api.watch(CONFIGMAPS, SPACE, labels="t=silent", since=since)
        threading.Timer(0.2, watch.close).start()
        assert list(watch) == []
