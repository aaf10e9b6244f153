"""JSON Schema of the chart's values: ours by hand, ``operator.config`` from the model that the operator reads."""

from __future__ import annotations

from typing import Any

from dinoctl.spec.profile import OperatorConfig

Schema = dict[str, Any]
_DNS = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"


def values_schema() -> Schema:
    """Draft 2020-12. Unknown fields are refused everywhere but in what Kubernetes itself defines."""
    config: Schema = _closed(OperatorConfig.model_json_schema(by_alias=True))
    definitions = config.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of dinoctl",
        **_fields(
            image=_fields(
                name=_text("Image of the operator (and of MLflow), by digest.", minLength=1),
                pullPolicy=_text("As in a pod.", enum=["IfNotPresent", "Always", "Never"]),
                pullSecrets=_list(_text("Name of a Secret.", pattern=_DNS)),
            ),
            operator=_operator(config),
            crds=_fields(install=_flag("Whether the definition of DinoJob is part of the release.")),
            rbac=_fields(
                create=_flag("Whether roles are made in the watched namespaces."),
                finalize=_flag(
                    "Whether the operator may read and patch DinoJobs in all namespaces, to end deleted ones."
                ),
                users=_list(_kubernetes("Subject, as in a RoleBinding, that may work with jobs.")),
            ),
            networkPolicy=_fields(
                enabled=_flag("Whether network policies are made."),
                metricsFrom=_list(_kubernetes("Peer that may read metrics.")),
                kuberay=_kubernetes("Peer: KubeRay's operator."),
                jobsFrom=_list(_kubernetes("Further ingress rule of pods of jobs.")),
                mlflowFrom=_list(_kubernetes("Further peer of MLflow.")),
            ),
            monitoring=_monitoring(),
            mlflow=_mlflow(),
            **{"global": _kubernetes("Helm's.")},
        ),
        "required": ["image", "operator"],
        "$defs": definitions,
    }


def _closed(node: Any) -> Any:
    """Maps take the keys of their patterns only; titles that repeat a name, and what is for our documents, go."""
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _closed(value) for key, value in node.items() if key not in ("title", "source", "derived")}
    return kept | ({"additionalProperties": False} if "patternProperties" in kept else {})


def _operator(config: Schema) -> Schema:
    return _fields(
        replicas=_number("Operators; one works.", minimum=1),
        command=_list(_text("Command of the operator.")),
        config=config,
        runAs=_number("User and group; not root.", minimum=1),
        priorityClassName=_text("As in a pod."),
        serviceAccount=_fields(name=_text("Of one that is there.", pattern=_DNS), annotations=_map()),
        labels=_map(),
        annotations=_map(),
        nodeSelector=_map(),
        **_pod(),
        envFrom=_list(_kubernetes("As in a container.")),
        volumes=_list(_kubernetes("As in a pod.")),
        volumeMounts=_list(_kubernetes("As in a container.")),
        affinity=_kubernetes("As in a pod."),
    )


def _monitoring() -> Schema:
    rules = {
        "stuckMinutes": _number("Without progress.", minimum=1),
        "checkpointMinutes": _number("Age of a checkpoint.", minimum=1),
        "attemptsPerHour": _number("Of one job.", minimum=1),
    }
    return _fields(
        serviceMonitor=_fields(
            enabled=_flag("Make it."), interval=_text("As 30s.", pattern=r"^\d+(ms|s|m)$"), labels=_map()
        ),
        rules=_fields(enabled=_flag("Make the PrometheusRule."), labels=_map(), **rules),
        dashboard=_fields(enabled=_flag("Make the ConfigMap for Grafana."), labels=_map()),
    )


def _mlflow() -> Schema:
    auth = _fields(enabled=_flag("MLflow's own accounts."), secret=_text("Name of a Secret.", pattern=_DNS))
    on = {"required": ["enabled"], "properties": {"enabled": {"const": True}}}
    return _fields(
        enabled=_flag("Whether there is one."),
        port=_number("Of the Service.", minimum=1024, maximum=65535),
        backendStore=_fields(secret=_text("Name of a Secret.", pattern=_DNS), key=_text("Key in it.", minLength=1)),
        artifacts=_text("URI."),
        storage=_fields(
            size=_text("Of the volume.", pattern=r"^\d+[KMGT]i$"),
            className=_text("Its StorageClass."),
            existingClaim=_text("A claim that is there.", pattern=_DNS),
        ),
        auth={**auth, "if": on, "then": {"properties": {"secret": {"minLength": 1}}}},
        allowedHosts=_list(_text("Host name.", minLength=1)),
        envFrom=_list(_kubernetes("As in a container.")),
        nodeSelector=_map(),
        **_pod(),
    )


def _pod() -> dict[str, Schema]:
    return {
        "env": _list(_kubernetes("As in a container.")),
        "resources": _kubernetes("As in a container."),
        "tolerations": _list(_kubernetes("As in a pod.")),
    }


def _fields(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _text(description: str, **limits: Any) -> Schema:
    return {"type": "string", "description": description, **limits}


def _number(description: str, **limits: Any) -> Schema:
    return {"type": "integer", "description": description, **limits}


def _flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map() -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}}


def _kubernetes(description: str) -> Schema:
    return {"type": "object", "description": description}
