"""What a finished attempt leaves in the job's storage, in this order: export or dataset, evidence, output.

``output.json`` is the proof of completion: written last, and only once its parts are complete.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from dinoctl.data.errors import NotFoundError
from dinoctl.data.storage import Storage
from dinoctl.tracking.gate import Evidence, evidence_from_json, evidence_to_json

OUTPUT, EVIDENCE = "output.json", "evidence.json"


@dataclass(frozen=True)
class Output:
    """``content_hash``: sha256 of the export or dataset; ``summary``: numbers for tables."""

    kind: str
    spec_hash: str
    attempt: int
    step: int
    content_hash: str
    summary: Mapping[str, float | str]


def write_output(storage: Storage, output: Output, evidence: Evidence | None) -> None:
    """Evidence first, then the proof."""
    if evidence is not None:
        storage.write(EVIDENCE, evidence_to_json(evidence).encode())
    storage.write(OUTPUT, json.dumps(asdict(output), indent=1, sort_keys=True).encode())


def read_output(storage: Storage) -> Output | None:
    """The proof of completion, None when there is none."""
    try:
        return Output(**json.loads(storage.read(OUTPUT)))
    except NotFoundError:
        return None


def read_evidence(storage: Storage) -> Evidence | None:
    """The measurements behind the gate, None when there are none."""
    try:
        return evidence_from_json(storage.read(EVIDENCE).decode())
    except NotFoundError:
        return None
