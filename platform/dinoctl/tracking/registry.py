"""The model registry: versions by source URI, aliases only for what passed its gate.

Registration is a few requests with no transaction around them, so every step leaves a state from which the same call
ends in the same place: a version is created with all its tags in one request and found again by its export and spec
hash; the former holder gets `rollback` before the alias moves; the last tag says that the promotion is done. After that
tag the alias is not touched again: a replay must not take it from a later version, or undo what a person did.

MLflow has no compare-and-swap on aliases: one process decides (the executor's lock or lease). Nothing is copied: a
version's source is the directory of the export. A tracking *server* (http) refuses `file://` sources; there use s3://
or the like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinoctl.spec.errors import redacted
from dinoctl.tracking import tags as names
from dinoctl.tracking.client import connect, error_code
from dinoctl.tracking.gate import (
    Champion,
    Evidence,
    GateDecision,
    decision_to_json,
    evidence_from_json,
    evidence_to_json,
)
from dinoctl.tracking.lookup import by_alias, by_number, inventory, of_export

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROLLBACK = "rollback"
_TAG_LENGTH = 100_000  # mlflow.utils.validation.MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH


@dataclass(frozen=True, slots=True)
class Registered:
    """A version, whether this call created it, and whether `alias` is at it now (a later version may hold it)."""

    model: str
    version: str
    alias: str
    created: bool
    current: bool = True


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A registered version: its name and number, the URI of its export directory, its tags."""

    model: str
    version: str
    source: str
    tags: Mapping[str, str]


def register(
    uri: str,
    *,
    model: str,
    alias: str,
    source_uri: str,
    run_id: str,
    evidence: Evidence,
    decision: GateDecision,
    tags: Mapping[str, str] | None = None,
) -> Registered:
    """Register an export that passed its gate and give it the alias; calling again changes nothing.

    The version is known by `evidence.checkpoint_hash` (the hash of the export) and `evidence.spec_hash`. Raises
    ValueError when the decision is a refusal or about other evidence, for the alias `rollback`, and for evidence over
    MLflow's tag limit.
    """
    _check(alias, evidence, decision)
    client = connect(uri)
    found = of_export(client, model, evidence.checkpoint_hash, evidence.spec_hash)
    labels = {**(tags or {}), **_labels(evidence, decision)}
    version = found or _create(client, model, source_uri, run_id, labels)
    if version.tags.get(names.promoted(alias)) != "true":
        _promote(client, version, alias, labels)
    holder = by_alias(client, model, alias)
    current = holder is not None and holder.version == version.version
    return Registered(model, str(version.version), alias, found is None, current)


def promoted(uri: str, model: str, alias: str, evidence: Evidence) -> Registered | None:
    """The version of an export, if it has had the alias; a later one may hold it by now."""
    client = connect(uri)
    version = of_export(client, model, evidence.checkpoint_hash, evidence.spec_hash)
    if version is None or version.tags.get(names.promoted(alias)) != "true":
        return None
    holder = by_alias(client, model, alias)
    current = holder is not None and holder.version == version.version
    return Registered(model, str(version.version), alias, False, current)


def champion(uri: str, model: str, alias: str = "champion") -> Champion | None:
    """The version that holds the alias, with the evidence stored on it (none for a version that others made)."""
    version = by_alias(connect(uri), model, alias)
    if version is None:
        return None
    text = version.tags.get(names.EVIDENCE)
    evidence = evidence_from_json(text) if text else Evidence({}, "", "", "")
    return Champion(str(version.version), evidence.metrics, evidence.dataset_hash)


def resolve_model(uri: str, reference: str) -> ModelRef:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` to the version. Raises ValueError for another form, or if it is
    not there.
    """
    name, separator, which = reference.removeprefix("models:/").partition("@" if "@" in reference else "/")
    if not reference.startswith("models:/") or not name or not which or (separator == "/" and not which.isdecimal()):
        raise ValueError(f"{reference!r} is not a registered model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    client = connect(uri)
    version = by_alias(client, name, which) if separator == "@" else by_number(client, name, which)
    if version is None:
        raise ValueError(f"{reference} is not in the registry {redacted(uri)}: {inventory(client, name)}")
    return ModelRef(name, str(version.version), str(version.source), dict(version.tags))


def _check(alias: str, evidence: Evidence, decision: GateDecision) -> None:
    if not decision.passed:
        raise ValueError("not registered, the gate refused: " + "; ".join(decision.reasons))
    if decision.evidence != evidence:
        raise ValueError("not registered: the decision was made on other evidence")
    if alias == ROLLBACK:
        raise ValueError("the alias 'rollback' is kept for the former holder of an alias; choose another one")
    if len(decision_to_json(decision)) > _TAG_LENGTH:
        raise ValueError(
            f"not registered: the evidence is over {_TAG_LENGTH} characters; measure fewer metrics in a gate"
        )


def _labels(evidence: Evidence, decision: GateDecision) -> dict[str, str]:
    return {
        names.EXPORT_HASH: evidence.checkpoint_hash,
        names.SPEC_HASH: evidence.spec_hash,
        names.DATASET_HASH: evidence.dataset_hash,
        names.EVIDENCE: evidence_to_json(evidence),
        names.DECISION: decision_to_json(decision),
    }


def _ensure_model(client: MlflowClient, model: str) -> None:
    try:
        client.create_registered_model(model)
    except Exception as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise


def _create(client: MlflowClient, model: str, source_uri: str, run_id: str, labels: Mapping[str, str]) -> ModelVersion:
    _ensure_model(client, model)
    try:
        return client.create_model_version(model, source_uri, run_id, tags=dict(labels), await_creation_for=0)
    except Exception as error:
        if error_code(error) == "INVALID_PARAMETER_VALUE" and source_uri.startswith(("file:", "/")):
            raise ValueError(
                f"a tracking server takes no local model ({source_uri}): store the job on s3://"
            ) from error
        raise


def _promote(client: MlflowClient, version: ModelVersion, alias: str, labels: Mapping[str, str]) -> None:
    """The order makes it repeatable: `rollback` first, then the alias, then the tag that says so."""
    model, number = version.name, str(version.version)
    for key, value in labels.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(model, number, key, value)
    previous = by_alias(client, model, alias)
    if previous is not None and str(previous.version) != number:
        client.set_registered_model_alias(model, ROLLBACK, str(previous.version))
    client.set_registered_model_alias(model, alias, number)
    client.set_model_version_tag(model, number, names.promoted(alias), "true")
