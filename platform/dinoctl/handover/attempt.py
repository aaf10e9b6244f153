"""One attempt of one job, as a stage sees it. This is the file that ``python -m dinoctl.worker --job FILE`` reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoctl.data.storage import Storage, open_storage
from dinoctl.handover.files import write_whole
from dinoctl.spec.errors import UserError
from dinoctl.spec.job import JobSpec

ATTEMPT_FORMAT = "dinoctl.attempt/v1"


@dataclass(frozen=True)
class Attempt:
    """``spec`` is resolved, its parents pinned to URIs. ``scratch`` is a local directory of this attempt alone
    (logs, progress, stop file); ``spool`` the job's local metric spool; ``storage`` where outputs go.
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

    @property
    def storage(self) -> Storage:
        """The job's own storage."""
        return open_storage(self.storage_uri)

    @property
    def stop_file(self) -> Path:
        """When this exists, training commits a checkpoint and stops."""
        return self.scratch / "stop"

    def write(self, path: Path) -> None:
        """As JSON; a reader sees all of it or nothing."""
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
        write_whole(path, json.dumps(fields, indent=1))

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
        )
