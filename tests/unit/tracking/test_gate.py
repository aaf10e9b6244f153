import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.tracking.gate import (
    Champion,
    Evidence,
    GateDecision,
    GateRule,
    decide_gate,
    decide_together,
    decision_from_json,
    decision_to_json,
    evidence_from_json,
    evidence_to_json,
)

RULE = GateRule("knn_top1", minimum=0.8, above_random=0.25, margin=0.01)


def evidence(**metrics: float) -> Evidence:
    return Evidence({"knn_top1": 0.861, "random_knn_top1": 0.461} | metrics, "data", "export", "spec")


def champion(value: float = 0.86, dataset: str = "data") -> Champion:
    return Champion("3", {"knn_top1": value}, dataset)


@pytest.mark.parametrize(
    ("rule", "metrics", "holder", "passed", "reasons"),
    [
        (
            RULE,
            {},
            None,
            True,
            ["knn_top1 0.861 >= 0.8", "0.4 above the untrained backbone (0.461), 0.25", "no champion"],
        ),
        (
            RULE,
            {},
            champion(),
            True,
            ["0.861 >= 0.8", "untrained", "0.861 >= 0.86 of champion version 3 less the margin 0.01"],
        ),
        (RULE, {}, champion(0.871), True, ["", "", ">= 0.871"]),
        (RULE, {}, champion(0.872), False, ["0.861 >= 0.8", "", "0.861 < 0.872 of champion version 3"]),
        (
            RULE,
            {},
            champion(0.99, "other"),
            True,
            ["", "", "not compared with champion version 3: it was measured on another"],
        ),
        (RULE, {}, champion(math.nan), True, ["", "", "not compared with champion version 3: it shows no knn_top1"]),
        (RULE, {"knn_top1": 0.7999}, None, False, ["knn_top1 0.7999 < 0.8", "0.3389 above", "no champion"]),
        (RULE, {"random_knn_top1": 0.7}, None, False, ["", "0.161 above the untrained backbone (0.7), 0.25", ""]),
        (RULE, {"random_knn_top1": 0.9}, None, False, ["", "0.039 below the untrained backbone", ""]),
        (RULE, {"random_knn_top1": math.nan}, None, False, ["", "random_knn_top1 is nan, not a finite number", ""]),
        (RULE, {"knn_top1": math.nan}, None, False, ["knn_top1 is nan, not a finite number"]),
        (RULE, {"knn_top1": math.inf}, champion(), False, ["knn_top1 is inf, not a finite number"]),
        (GateRule("miou", minimum=0.1), {}, None, False, ["miou was not measured"]),
        (GateRule("miou", above_random=0.1), {"miou": 0.5}, None, False, ["random_miou was not measured"]),
        (GateRule("knn_top1"), {}, champion(0.99), True, ["knn_top1 is 0.861; no least value is asked"]),
        (
            GateRule("knn_top1", above_random=0.25),
            {"knn_top1": 0.83, "random_knn_top1": 0.58},
            None,
            True,
            ["0.25 above"],
        ),
        (GateRule("knn_top1", minimum=0.861), {}, None, True, ["0.861 >= 0.861"]),
    ],
)
def test_rules(
    rule: GateRule, metrics: dict[str, float], holder: Champion | None, passed: bool, reasons: list[str]
) -> None:
    decision = decide_gate(rule, evidence(**metrics), holder)
    assert decision.passed is passed
    assert len(decision.reasons) == len(reasons)
    for said, expected in zip(decision.reasons, reasons, strict=True):
        assert expected in said


@pytest.mark.parametrize("field", ["dataset_hash", "checkpoint_hash"])
def test_evidence_of_nothing_in_particular_is_refused(field: str) -> None:
    decision = decide_gate(GateRule("knn_top1", 0.8), dataclasses.replace(evidence(), **{field: ""}), None)
    assert not decision.passed
    assert f"does not say on which {field.removesuffix('_hash')}" in decision.reasons[0]


numbers = st.floats() | st.floats(0, 1)
names = st.sampled_from(["knn_top1", "random_knn_top1", "miou"])
all_evidence = st.builds(Evidence, st.dictionaries(names, numbers), st.text(), st.text(), st.text())
finite = st.none() | st.floats(0, 1)
rules = st.builds(GateRule, names, finite, finite, finite)
champions = st.none() | st.builds(Champion, st.text(), st.dictionaries(names, numbers), st.text())


@settings(deadline=None)
@given(rules, all_evidence, champions)
def test_decisions_survive_json_and_never_pass_without_the_metric(
    rule: GateRule, shown: Evidence, holder: Champion | None
) -> None:
    decision = decide_gate(rule, shown, holder)
    text = decision_to_json(decision)
    json.loads(text, parse_constant=pytest.fail)
    assert decision_to_json(decision_from_json(text)) == text
    assert evidence_to_json(evidence_from_json(evidence_to_json(shown))) == evidence_to_json(shown)
    assert decision.reasons
    if decision.passed:
        value = shown.metrics[rule.metric]
        assert math.isfinite(value)
        assert rule.minimum is None or value >= rule.minimum


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"metrics": {"a": null}}', '{"metrics": 1}', '{"metrics": {"a": true}}']
)
def test_what_is_no_evidence_is_a_value_error(text: str) -> None:
    for read in (evidence_from_json, decision_from_json):
        with pytest.raises(ValueError):  # noqa: PT011  (json's own messages among ours)
            read(text)


def test_a_decision_keeps_its_inputs() -> None:
    decision = decide_gate(RULE, evidence(), champion())
    assert decision == GateDecision(True, decision.reasons, RULE, evidence(), champion())
    assert decision_from_json(decision_to_json(decision)) == decision
    assert evidence_from_json(evidence_to_json(evidence())) == evidence()


def test_several_students_pass_together() -> None:
    rule = GateRule("knn_top1", minimum=0.8)
    metrics = {"a/knn_top1": 0.9, "b/knn_top1": 0.7}
    both = Evidence(metrics, "data", "export", "spec", {"a": "x", "b": "y"})
    assert evidence_from_json(evidence_to_json(both)) == both
    assert both.of("a") == Evidence({"knn_top1": 0.9}, "data", "x", "spec")
    refused = decide_together(rule, both, ("a", "b"), {})
    assert not refused.passed
    assert refused.reasons == ("a: knn_top1 0.9 >= 0.8", "b: knn_top1 0.7 < 0.8")
    assert decide_together(rule, both, ("a",), {}).passed
    assert not decide_together(rule, both, ("a", "c"), {}).passed, "what was not measured does not pass"
    assert not decide_together(rule, both, (), {}).passed
