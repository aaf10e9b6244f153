"""The schema of a DinoJob's status: what the operator writes, for people, scripts and its own memory."""

from typing import Any

Node = dict[str, Any]


def status_schema() -> Node:
    """See the fields; ``lifecycle`` is the operator's memory and nobody else's."""
    return _object(
        "What the operator says of the job.",
        observedGeneration=_whole("Generation of the document that this speaks of."),
        conditions=_conditions(),
        state=_text("One word: what the job is doing. For display; scripts read the conditions."),
        message=_text("One sentence: what happens next, and why."),
        stage=_text("Kind of the job: pack, pretrain, highres, distill or evaluate."),
        profile=_text("Profile that it runs with."),
        queue=_text("Queue that it waits in."),
        workers=_whole("Ranks of the newest attempt."),
        attempt=_whole("Number of the newest attempt."),
        rayJob=_text("RayJob of the newest attempt."),
        step=_whole("Optimizer steps done; of packing and evaluations, images."),
        steps=_whole("Optimizer steps in all; of packing and evaluations, images."),
        imagesPerSecond=_number("Images a second over all workers."),
        etaSeconds=_number("Seconds left."),
        eta=_text("Time left, for people."),
        checkpointStep=_whole("Newest committed step: a restart goes on from here."),
        lastProgressTime=_time("When the workers reported last."),
        waste=_object(
            "Seconds lost over all ended attempts.",
            queueSeconds=_number("In queues."),
            startSeconds=_number("Starting."),
            replaySeconds=_number("Training again what no checkpoint kept."),
        ),
        failures=_object(
            "Attempts that ended badly.",
            infrastructure=_whole("By the machines; charged to policy.retries.infrastructure."),
            application=_whole("By the program; charged to policy.retries.application."),
            preemptions=_whole("By the scheduler; not charged."),
        ),
        parents=_list(
            "Jobs that it waits for.",
            _object("A job.", name=_text("Its name."), state=_text("How it stands."), message=_text("In words.")),
        ),
        model=_object(
            "What was registered.",
            name=_text("Registered model."),
            version=_text("Version of it."),
            alias=_text("Alias that moved to the version."),
        ),
        storage=_text("Where the outputs go."),
        runId=_text("MLflow run."),
        lastFailure=_object(
            "The newest attempt that ended badly.",
            **{"class": _text("Class of the failure.")},
            attempt=_whole("Its number."),
            message=_text("The line that shows it."),
            bundle=_text("Where logs, events and the difference to the last good run lie (dinoctl explain)."),
            node=_text("Node that it happened on."),
        ),
        excludedNodes=_list("Nodes that the next attempt avoids.", _text("Name of a node.")),
        strikes={
            "description": "Infrastructure failures by node.",
            "type": "object",
            "additionalProperties": {"type": "integer", "format": "int64"},
        },
        restart=_text("Last restart annotation that was handled."),
        lifecycle={
            "description": "The operator's memory of the job.",
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
        },
    )


def _conditions() -> Node:
    condition = _object(
        "As in all of Kubernetes.",
        type=_text("Validated, ParentsReady, Admitted, Running, Checkpointed, Healthy, Evaluated, Promoted, ..."),
        status={"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
        reason=_text("Why, in one word of a closed set."),
        message=_text("Why, in words."),
        lastTransitionTime=_time("When status changed last."),
        observedGeneration=_whole("Generation of the document that this speaks of."),
    )
    condition["required"] = ["type", "status", "reason", "lastTransitionTime"]
    keyed = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {**_list("How the job stands, by aspect.", condition), **keyed}


def _object(description: str, **fields: Node) -> Node:
    return {"description": description, "type": "object", "properties": fields}


def _list(description: str, items: Node) -> Node:
    return {"description": description, "type": "array", "items": items}


def _text(description: str) -> Node:
    return {"description": description, "type": "string"}


def _time(description: str) -> Node:
    return {"description": description, "type": "string", "format": "date-time"}


def _whole(description: str) -> Node:
    return {"description": description, "type": "integer", "format": "int64"}


def _number(description: str) -> Node:
    return {"description": description, "type": "number"}
