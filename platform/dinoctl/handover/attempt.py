"""One attempt of one job, as a stage sees it. This is the file that ``python -m dinoctl.worker --job FILE`` reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.files import write_whole
from dinoctl.spec.errors import UserError
from dinoctl.spec.job import JobSpec

ATTEMPT_FORMAT = "dinoctl.attempt/v1"
PREEMPTED = "preempted"
"""Content of a stop file that tells of a preemption; any other is a request."""


@dataclass(frozen=True)
class Cluster:
    """Where an attempt runs on Kubernetes: job object (its name is the attempt's), and whom its workers tell.

    ``progress`` names the ConfigMap that they report to, ``run_life`` is the key of the job's MLflow run
    (``handover.runs``), ``first_attempt`` the first one of this life. ``secret_env`` names variables whose values must
    not come into logs; ``labels`` are the job's, for its run.
    """

    namespace: str
    uid: str
    progress: str
    run_life: str
    first_attempt: int = 1
    secret_env: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an attempt's file."""
        return {
            "namespace": self.namespace,
            "uid": self.uid,
            "progress": self.progress,
            "runLife": self.run_life,
            "firstAttempt": self.first_attempt,
            "secretEnv": list(self.secret_env),
            "labels": dict(self.labels),
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> "Cluster":
        """Reverse of ``to_dict``."""
        return Cluster(
            namespace=fields["namespace"],
            uid=fields["uid"],
            progress=fields["progress"],
            run_life=fields["runLife"],
            first_attempt=fields.get("firstAttempt", 1),
            secret_env=tuple(fields.get("secretEnv", ())),
            labels=dict(fields.get("labels", {})),
        )


@dataclass(frozen=True)
class Attempt:
    """``spec`` is resolved, its parents pinned to URIs. ``scratch`` is a local directory of this attempt alone
    (logs, progress, stop file); ``spool`` the job's local metric spool; ``storage`` where outputs go. With ``cluster``
    each machine has a scratch and a spool of its own, and the driver shares nothing but the storage with its ranks.
    """

    name: str
    spec: JobSpec
    spec_hash: str
    number: int
    storage_uri: str
    scratch: Path
    spool: Path
    tracking_uri: str | None = None
    run_id: str = ""
    cluster: Cluster | None = None

    @property
    def storage(self) -> Storage:
        """The job's own storage."""
        return open_storage(self.storage_uri)

    @property
    def stop_file(self) -> Path:
        """When this exists, training commits a checkpoint and stops."""
        return self.scratch / "stop"

    def to_json(self) -> str:
        """The file's text."""
        fields = {
            "format": ATTEMPT_FORMAT,
            "name": self.name,
            "spec": self.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "specHash": self.spec_hash,
            "attempt": self.number,
            "storage": self.storage_uri,
            "scratch": str(self.scratch),
            "spool": str(self.spool),
            "trackingUri": self.tracking_uri,
            "runId": self.run_id,
        }
        if self.cluster is not None:
            fields["cluster"] = self.cluster.to_dict()
        return json.dumps(fields, indent=1)

    def write(self, path: Path) -> None:
        """As JSON; a reader sees all of it or nothing."""
        write_whole(path, self.to_json())

    @staticmethod
    def read(path: Path) -> "Attempt":
        """Reverse of ``write``; raises UserError when the file is not an attempt, or damaged."""
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("format") == ATTEMPT_FORMAT:
                return Attempt._parsed(fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged; run the job again") from error
        raise UserError(f"{path} is not a {ATTEMPT_FORMAT} file; run the job again")

    @staticmethod
    def _parsed(fields: dict[str, Any]) -> "Attempt":
        return Attempt(
            name=fields["name"],
            spec=JobSpec.model_validate(fields["spec"], by_alias=True, by_name=False),
            spec_hash=fields["specHash"],
            number=fields["attempt"],
            storage_uri=fields["storage"],
            scratch=Path(fields["scratch"]),
            spool=Path(fields["spool"]),
            tracking_uri=fields["trackingUri"],
            run_id=fields["runId"],
            cluster=Cluster.from_dict(fields["cluster"]) if fields.get("cluster") else None,
        )
