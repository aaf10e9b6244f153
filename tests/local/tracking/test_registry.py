import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

import dinoctl
from dinoctl.model import VisionTransformer, ViTConfig, save_export
from dinoctl.spec.errors import UserError
from dinoctl.tracking import lookup, registry, tags
from dinoctl.tracking.client import connect
from dinoctl.tracking.gate import Evidence, GateDecision, GateRule, decide_gate, decision_from_json
from dinoctl.tracking.mlflow_runs import ensure_run
from dinoctl.tracking.registry import ModelRef, Registered, champion, register, resolve_model

Name = Callable[[str], str]
RULE = GateRule("knn_top1", minimum=0.8)


class Killed(BaseException):
    pass


class Fuse:
    """A real client that dies before its n-th call; `blown` says whether it came that far."""

    def __init__(self, client: Any, calls: int) -> None:
        self.client, self.left, self.blown = client, calls, False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                self.blown = True
                raise Killed
            self.left -= 1
            return getattr(self.client, name)(*args, **kwargs)

        return call


def evidence(export: str, value: float = 0.86) -> Evidence:
    return Evidence({"knn_top1": value, "random_knn_top1": 0.46}, "data", export, "spec")


@pytest.fixture
def run_id(uri: str, fresh: Name) -> str:
    return ensure_run(uri, fresh("exp"), "digits", "pretrain", "hash-1").child


@pytest.fixture
def put(uri: str, run_id: str, tmp_path: Path) -> Callable[..., Registered]:
    def put(model: str, export: str, alias: str = "champion", **labels: str) -> Registered:
        shown = evidence(export)
        decision = decide_gate(RULE, shown, champion(uri, model, alias))
        source = (tmp_path / export).as_uri()
        return register(
            uri,
            model=model,
            alias=alias,
            source_uri=source,
            run_id=run_id,
            evidence=shown,
            decision=decision,
            tags=labels,
        )

    return put


def state(uri: str, model: str) -> tuple[list[tuple[str, dict[str, str]]], dict[str, str]]:
    """Versions with their tags, and aliases."""
    client = connect(uri)
    versions = client.search_model_versions(f"name = '{model}'")
    aliases = {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}
    return sorted((str(version.version), dict(version.tags)) for version in versions), aliases


def test_a_version_points_at_the_export_and_keeps_the_decision(
    uri: str, fresh: Name, put: Callable[..., Registered], tmp_path: Path, run_id: str
) -> None:
    model = fresh("model")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    assert put(model, "one", note="first") == Registered(model, "1", "champion", created=True, current=True)
    for reference in (f"models:/{model}@champion", f"models:/{model}/1"):
        found = resolve_model(uri, reference)
        assert found == ModelRef(model, "1", (tmp_path / "one").as_uri(), found.tags)
        assert found.tags["note"] == "first"
        assert decision_from_json(found.tags[tags.DECISION]).reasons == ("knn_top1 0.86 >= 0.8",)
    assert connect(uri).get_model_version(model, "1").run_id == run_id


def test_mlflow_itself_resolves_the_alias_to_the_directory(
    uri: str, fresh: Name, put: Callable[..., Registered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh("model")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    put(model, "one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Path(mlflow.artifacts.download_artifacts(f"models:/{model}@champion")) == tmp_path / "one"


def test_a_registered_model_can_be_loaded(
    uri: str, fresh: Name, put: Callable[..., Registered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = fresh("model"), ViTConfig(embed_dim=32, depth=1, num_heads=2, patch_size=4, img_size=16)
    backbone = VisionTransformer(config)
    save_export(tmp_path / "one", backbone, config, {}, {})
    put(model, "one")
    assert dinoctl.load_backbone(f"models:/{model}/1", tracking_uri=uri).config == config
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = dinoctl.load_backbone(f"models:/{model}@champion")
    assert torch.equal(loaded.cls_token, backbone.cls_token)
    with pytest.raises(UserError, match=f"models:/{model}@absent is not in the registry"):
        dinoctl.load_backbone(f"models:/{model}@absent")


def test_registering_again_changes_nothing(uri: str, fresh: Name, put: Callable[..., Registered]) -> None:
    model = fresh("model")
    put(model, "one")
    before = state(uri, model)
    assert put(model, "one") == Registered(model, "1", "champion", created=False, current=True)
    assert state(uri, model) == before
    assert before[1] == {"champion": "1"}


def test_the_former_champion_becomes_rollback(uri: str, fresh: Name, put: Callable[..., Registered]) -> None:
    model = fresh("model")
    for export in ("one", "two", "three"):
        put(model, export)
    assert state(uri, model)[1] == {"champion": "3", "rollback": "2"}
    shown = champion(uri, model)
    assert shown is not None
    assert (shown.version, shown.metrics["knn_top1"], shown.dataset_hash) == ("3", 0.86, "data")


def test_a_replay_takes_the_alias_from_nobody(uri: str, fresh: Name, put: Callable[..., Registered]) -> None:
    model = fresh("model")
    put(model, "one")
    put(model, "two")
    assert put(model, "one") == Registered(model, "1", "champion", created=False, current=False)
    assert state(uri, model)[1] == {"champion": "2", "rollback": "1"}
    connect(uri).set_registered_model_alias(model, "champion", "1")  # a person goes back
    assert not put(model, "two").current
    assert state(uri, model)[1] == {"champion": "1", "rollback": "1"}


def test_one_version_may_hold_several_aliases(uri: str, fresh: Name, put: Callable[..., Registered]) -> None:
    model = fresh("model")
    put(model, "one")
    assert put(model, "one", alias="student") == Registered(model, "1", "student", created=False, current=True)
    assert state(uri, model)[1] == {"champion": "1", "student": "1"}


def test_the_same_export_of_another_spec_or_model_is_another_version(
    uri: str, fresh: Name, put: Callable[..., Registered], run_id: str
) -> None:
    model, shown = fresh("model"), dataclasses.replace(evidence("one"), spec_hash="other")
    put(fresh("model"), "one")
    put(model, "one")
    decision = decide_gate(RULE, shown, None)
    second = register(
        uri, model=model, alias="champion", source_uri="s3://b/k", run_id=run_id, evidence=shown, decision=decision
    )
    assert (second.version, second.created) == ("2", True)


@pytest.mark.parametrize("earlier", [[], ["zero"]], ids=["first", "second"])
def test_killed_between_any_two_calls_it_ends_in_the_same_state(
    uri: str, fresh: Name, put: Callable[..., Registered], monkeypatch: pytest.MonkeyPatch, earlier: list[str]
) -> None:
    smooth = fresh("model")
    for export in (*earlier, "one"):
        put(smooth, export)
    calls, blown = 0, True
    while blown:
        model = fresh("model")
        for export in earlier:
            put(model, export)
        fuse = Fuse(connect(uri), calls)
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(registry, "connect", lambda _, fuse=fuse: fuse)
            put(model, "one")
        put(model, "one")
        assert without_inputs(state(uri, model)) == without_inputs(state(uri, smooth))
        calls, blown = calls + 1, fuse.blown
    assert calls > 8


def without_inputs(found: tuple[list[tuple[str, dict[str, str]]], dict[str, str]]) -> object:
    return [(number, {**labels, tags.DECISION: ""}) for number, labels in found[0]], found[1]


def refusal(change: str) -> tuple[Evidence, GateDecision]:
    shown = evidence("one", 0.5 if change == "refused" else 0.9)
    decision = decide_gate(RULE, shown, None)
    return (evidence("two"), decision) if change == "other" else (shown, decision)


@pytest.mark.parametrize(
    ("change", "alias", "message"),
    [
        ("refused", "champion", "the gate refused: knn_top1 0.5 < 0.8"),
        ("other", "champion", "other evidence"),
        ("", "rollback", "kept for the former holder"),
    ],
)
def test_what_may_not_be_registered_leaves_no_trace(
    uri: str, fresh: Name, change: str, alias: str, message: str, run_id: str
) -> None:
    model = fresh("model")
    shown, decision = refusal(change)
    with pytest.raises(ValueError, match=message):
        register(uri, model=model, alias=alias, source_uri="s3://b/k", run_id=run_id, evidence=shown, decision=decision)
    assert lookup.by_number(connect(uri), model, "1") is None
    assert champion(uri, model, alias) is None


def test_evidence_beyond_the_tag_limit_is_refused_before_anything_is_written(uri: str, fresh: Name) -> None:
    shown = Evidence({"knn_top1": 0.9} | {f"metric-{index}": 0.123456 for index in range(5000)}, "data", "one", "spec")
    model, decision = fresh("model"), decide_gate(RULE, shown, None)
    with pytest.raises(ValueError, match="over 100000 characters"):
        register(uri, model=model, alias="a", source_uri="s3://b/k", run_id="", evidence=shown, decision=decision)
    assert champion(uri, model) is None


def test_a_champion_that_others_registered_has_no_evidence(uri: str, fresh: Name) -> None:
    model, client = fresh("model"), connect(uri)
    client.create_registered_model(model)
    client.create_model_version(model, "s3://b/k")
    client.set_registered_model_alias(model, "champion", "1")
    shown = champion(uri, model)
    assert shown is not None
    assert (shown.metrics, shown.dataset_hash) == ({}, "")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/{}@nobody", "is not in the registry .*: {} has the aliases champion"),
        ("models:/{}/7", "is not in the registry .*: {} has the aliases champion"),
        ("models:/nothing-like-it@champion", "it has the models .*{}"),
        ("models:/{}", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/{}/latest", "write models:/NAME@ALIAS"),
        ("models:/@champion", "write models:/NAME@ALIAS"),
        ("s3://bucket/{}@champion", "write models:/NAME@ALIAS"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(
    uri: str, fresh: Name, put: Callable[..., Registered], reference: str, message: str
) -> None:
    model = fresh("model")
    put(model, "one")
    with pytest.raises(ValueError, match=message.format(model)):
        resolve_model(uri, reference.format(model))
