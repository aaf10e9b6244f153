"""Is a model good enough? A pure function of what was measured on it and of what the present champion showed.

Every figure comes with the hash of the dataset on which it was measured and of the checkpoint that was measured. What
is missing or not a number is a refusal with that reason, never a pass. `reasons` are sentences for a person, the same
for a pass and a refusal, so that the registry can show why a version holds its alias.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from dinoctl.tracking.jsonnum import from_json, to_json

Verdict: TypeAlias = tuple[bool, str]

_ROUNDING = 1e-9  # a difference of two decimal figures is not exact: 0.83 - 0.58 must count as 0.25


@dataclass(frozen=True, slots=True)
class GateRule:
    """What is asked; None asks nothing.

    metric: its name in the evidence; the same backbone untrained is `random_<metric>`. Higher is better. minimum: least
    value. above_random: least distance to the untrained backbone. margin: how far below the champion, measured on the
    same dataset, is still good (non-inferiority); None: no comparison.
    """

    metric: str
    minimum: float | None = None
    above_random: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measured metrics, and what they were measured on: the labelled dataset, the exported model, the spec that made
    it. A job with several students has metrics `NAME/...` and in `parts` the hash of each one's export.
    """

    metrics: Mapping[str, float]
    dataset_hash: str
    checkpoint_hash: str
    spec_hash: str
    parts: Mapping[str, str] = field(default_factory=dict)

    def of(self, student: str) -> Evidence:
        """What there is on one of several students, as if it were alone; nothing for an unknown one."""
        start = f"{student}/"
        own = {key.removeprefix(start): value for key, value in self.metrics.items() if key.startswith(start)}
        return Evidence(own, self.dataset_hash, self.parts.get(student, ""), self.spec_hash)


@dataclass(frozen=True, slots=True)
class Champion:
    """The version that holds the alias now, with its metrics and their dataset."""

    version: str
    metrics: Mapping[str, float]
    dataset_hash: str


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The verdict, its reasons in order, and everything that it was made of."""

    passed: bool
    reasons: tuple[str, ...]
    rule: GateRule
    evidence: Evidence
    champion: Champion | None


def decide_gate(rule: GateRule, evidence: Evidence, champion: Champion | None) -> GateDecision:
    """Pass if every check that the rule asks for holds. Every check is made, so that all reasons are known at once."""
    verdicts = list(_verdicts(rule, evidence, champion))
    passed = all(good for good, _ in verdicts)
    return GateDecision(passed, tuple(reason for _, reason in verdicts), rule, evidence, champion)


def decide_together(
    rule: GateRule, evidence: Evidence, students: Sequence[str], champions: Mapping[str, Champion | None]
) -> GateDecision:
    """Pass if every student passes on its own; reasons begin with a student's name."""
    decisions = {name: decide_gate(rule, evidence.of(name), champions.get(name)) for name in students}
    reasons = tuple(f"{name}: {reason}" for name, one in decisions.items() for reason in one.reasons)
    passed = bool(decisions) and all(one.passed for one in decisions.values())
    return GateDecision(passed, reasons, rule, evidence, None)


def _verdicts(rule: GateRule, evidence: Evidence, champion: Champion | None) -> Iterator[Verdict]:
    yield from _origin(evidence)
    value = evidence.metrics.get(rule.metric)
    if value is None or not math.isfinite(value):
        yield _unusable(rule.metric, value)
        return
    if rule.minimum is None and rule.above_random is None:
        yield True, f"{rule.metric} is {value:.6g}; no least value is asked"
    if rule.minimum is not None:
        good = value >= rule.minimum
        yield good, f"{rule.metric} {value:.6g} {'>=' if good else '<'} {rule.minimum:g}"
    if rule.above_random is not None:
        yield _against_random(rule.metric, value, evidence.metrics.get(f"random_{rule.metric}"), rule.above_random)
    if rule.margin is not None:
        yield _against_champion(rule.metric, value, evidence.dataset_hash, champion, rule.margin)


def _origin(evidence: Evidence) -> Iterator[Verdict]:
    for name, value in (("dataset", evidence.dataset_hash), ("checkpoint", evidence.checkpoint_hash)):
        if not value:
            yield False, f"the evidence does not say on which {name} it was measured"


def _unusable(metric: str, value: float | None) -> Verdict:
    return False, f"{metric} was not measured" if value is None else f"{metric} is {value}, not a finite number"


def _against_random(metric: str, value: float, random: float | None, needed: float) -> Verdict:
    if random is None or not math.isfinite(random):
        return _unusable(f"random_{metric}", random)
    gain = value - random
    good = gain >= needed - _ROUNDING
    place = "above" if gain >= 0 else "below"
    return (
        good,
        f"{metric} is {abs(gain):.6g} {place} the untrained backbone ({random:.6g}), {needed:g} above it needed",
    )


def _against_champion(
    metric: str, value: float, dataset_hash: str, champion: Champion | None, margin: float
) -> Verdict:
    if champion is None:
        return True, "there is no champion to compare with"
    name = f"champion version {champion.version}"
    if champion.dataset_hash != dataset_hash:
        return True, f"not compared with {name}: it was measured on another dataset"
    best = champion.metrics.get(metric)
    if best is None or not math.isfinite(best):
        return True, f"not compared with {name}: it shows no {metric}"
    good = value >= best - margin - _ROUNDING
    return good, f"{metric} {value:.6g} {'>=' if good else '<'} {best:.6g} of {name} less the margin {margin:g}"


def evidence_to_json(evidence: Evidence) -> str:
    """Strict JSON with sorted keys; nan and inf as strings."""
    return _dumps(_plain(evidence))


def evidence_from_json(text: str) -> Evidence:
    """Inverse of `evidence_to_json`. Raises ValueError for anything else."""
    return _evidence(_loads(text))


def decision_to_json(decision: GateDecision) -> str:
    """Strict JSON with sorted keys, inputs included; nan and inf as strings."""
    champion = None if decision.champion is None else _plain(decision.champion)
    return _dumps(
        {
            "passed": decision.passed,
            "reasons": list(decision.reasons),
            "rule": asdict(decision.rule),
            "evidence": _plain(decision.evidence),
            "champion": champion,
        }
    )


def decision_from_json(text: str) -> GateDecision:
    """Inverse of `decision_to_json`. Raises ValueError for anything else."""
    raw = _loads(text)
    try:
        champion = None if raw["champion"] is None else _champion(raw["champion"])
        rule = GateRule(**raw["rule"])
        return GateDecision(bool(raw["passed"]), tuple(raw["reasons"]), rule, _evidence(raw["evidence"]), champion)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a gate decision: {error}") from error


def _plain(record: Evidence | Champion) -> dict[str, Any]:
    plain = {name: getattr(record, name) for name in record.__dataclass_fields__}
    if not plain.get("parts", True):
        del plain["parts"]
    return plain | {"metrics": {key: to_json(value) for key, value in record.metrics.items()}}


def _evidence(raw: dict[str, Any]) -> Evidence:
    parts = raw.get("parts", {})
    if not isinstance(parts, dict):
        raise ValueError(f"not evidence: parts is {parts!r}")
    return Evidence(**_fields(raw, "dataset_hash", "checkpoint_hash", "spec_hash"), parts=parts)


def _champion(raw: dict[str, Any]) -> Champion:
    return Champion(**_fields(raw, "version", "dataset_hash"))


def _fields(raw: dict[str, Any], *names: str) -> dict[str, Any]:
    try:
        metrics = {str(key): from_json(value) for key, value in raw["metrics"].items()}
        return {"metrics": metrics} | {name: str(raw[name]) for name in names}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not evidence: {error!r}") from error


def _dumps(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False)


def _loads(text: str) -> dict[str, Any]:
    raw = json.loads(text)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    return raw
