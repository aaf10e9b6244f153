"""Slice manifests: what a rank wrote of a checkpoint, and where. JSON only."""

import json
from dataclasses import asdict, dataclass

import torch


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

    @property
    def size(self) -> int:
        """Bytes of the piece."""
        width: int = getattr(torch, self.dtype).itemsize
        return self.length * width


def pieces_to_json(pieces: list[Piece]) -> bytes:
    """A rank's manifest."""
    return json.dumps([asdict(piece) for piece in pieces]).encode()


def pieces_from_json(data: bytes) -> list[Piece]:
    """Reverse of ``pieces_to_json``."""
    return [Piece(**{**fields, "shape": tuple(fields["shape"])}) for fields in json.loads(data)]
