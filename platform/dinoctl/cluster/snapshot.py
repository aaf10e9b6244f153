"""The resolved document that a life of a job began with, in a ConfigMap of its own: upgrading dinoctl, or changing a
profile or a default, changes nothing under a job that has begun.

``document.json`` is what the user had written then, so that a later change of it can be told from a change of dinoctl.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoctl.cluster.objects import owner_of
from dinoctl.cluster.protocol import Object
from dinoctl.spec import names
from dinoctl.spec.job import JobSpec
from dinoctl.spec.resolve import ResolvedJob


@dataclass(frozen=True)
class Snapshot:
    """``life`` names the run of the job that it belongs to."""

    life: str
    job: ResolvedJob
    document: Mapping[str, Any]

    def body(self, owner: Object) -> Object:
        """The ConfigMap."""
        text = json.dumps(self.job.to_dict(), sort_keys=True)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names.resolved_name(self.job.name),
                "namespace": owner["metadata"]["namespace"],
                "labels": {names.JOB: self.job.name, "app.kubernetes.io/managed-by": names.MANAGER},
                "ownerReferences": [owner_of(owner)],
            },
            "data": {
                "life": self.life,
                "hash": self.job.spec_hash,
                "parents": json.dumps(list(self.job.parents)),
                "spec.json": text,
                "digest": hashlib.sha256(text.encode()).hexdigest(),
                "document.json": json.dumps(self.document, sort_keys=True),
            },
        }


def read_snapshot(body: Object | None) -> Snapshot | None:
    """The snapshot in a ConfigMap. One that somebody has edited or damaged counts as missing: it is made again."""
    data = (body or {}).get("data") or {}
    try:
        text = data["spec.json"]
        if hashlib.sha256(text.encode()).hexdigest() != data["digest"]:
            return None
        document = json.loads(text)
        metadata = document["metadata"]
        job = ResolvedJob(
            name=metadata["name"],
            spec=JobSpec.model_validate(document["spec"], by_alias=True, by_name=False),
            parents=tuple(json.loads(data["parents"])),
            labels=metadata.get("labels", {}),
            spec_hash=data["hash"],
            origins={},
            file=f"{names.PLURAL}/{metadata['name']}",
        )
        return Snapshot(data["life"], job, json.loads(data["document.json"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
