"""What a checkpoint says of itself: slice manifests of the ranks and the COMMIT that makes them count. JSON only."""

import json
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = "dinoctl.checkpoint/v1"


@dataclass(frozen=True)
class Piece:
    """Elements [offset, offset + length) of a flat tensor, at ``position`` (bytes) of ``file``; crc32c of its bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    length: int
    dtype: str
    file: str
    position: int
    crc32c: int


@dataclass(frozen=True)
class Commit:
    """A committed checkpoint: written last, and only once for a step."""

    step: int
    attempt: int
    world: int
    spec_hash: str
    run_id: str
    seed: int
    written_at: float
    manifests: dict[str, int]
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> "Commit":
        """Raises ValueError when ``data`` is not a commit of this format."""
        fields: dict[str, Any] = json.loads(data)
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"not a {FORMAT}")
        return Commit(**fields)


def pieces_to_json(pieces: list[Piece]) -> bytes:
    """A rank's manifest."""
    return json.dumps([asdict(piece) for piece in pieces]).encode()


def pieces_from_json(data: bytes) -> list[Piece]:
    """Reverse of ``pieces_to_json``."""
    return [Piece(**{**fields, "shape": tuple(fields["shape"])}) for fields in json.loads(data)]
