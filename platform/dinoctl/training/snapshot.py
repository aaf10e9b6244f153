"""Copying an engine's slices into host memory that is allocated once: the only moment training waits for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import torch
from torch import Tensor

from dinoctl.training.engines.base import Slice
from dinoctl.training.manifest import Piece

_CHUNK = 16 * 2**20  # a part of an upload
PIECE = 4 * 2**20
"""Bytes of a piece at most: the unit of checksums, so what a reader must fetch to verify the little that it needs."""


@dataclass(frozen=True)
class Snapshot:
    """Host copies of slices, one after the other in ``buffer`` (uint8)."""

    pieces: list[tuple[Slice, int, int]]
    buffer: Tensor

    @property
    def size(self) -> int:
        """Bytes."""
        return self.buffer.numel()

    def write_out(self, file: str) -> list[Piece]:
        """The manifest entries of a file that holds ``chunks()``; computes the checksums (no training thread waits)."""
        return [piece for part, start, _ in self.pieces for piece in self._cut(file, part, start)]

    def _cut(self, file: str, part: Slice, position: int) -> Iterator[Piece]:
        """A slice's pieces; one even if it has no elements, because the manifest tells its shape."""
        width, length = part.data.element_size(), part.data.numel()
        for at in range(0, max(length, 1), PIECE // width):
            count = min(PIECE // width, length - at)
            start = position + at * width
            crc = int(google_crc32c.value(self.buffer[start : start + count * width].numpy()))
            yield Piece(part.name, part.kind, part.shape, part.offset + at, count, _dtype(part.data), file, start, crc)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the file, in chunks of at most 16 MiB."""
        array = self.buffer.numpy()
        return (array[at : at + _CHUNK].tobytes() for at in range(0, len(array), _CHUNK))


class SnapshotBuffer:
    """One preallocated buffer, used again for every checkpoint."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def prepare(self, slices: Sequence[Slice]) -> None:
        """Makes room for copies of ``slices`` and touches it, so that no memory is allocated while training waits."""
        size = _layout(slices)[1]
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=_on_gpu(slices)).zero_()

    def take(self, slices: Sequence[Slice]) -> Snapshot:
        """Copies all slices; returns when the copies are complete."""
        bounds, size = _layout(slices)
        self.prepare(slices)
        buffer = self._buffer[:size]
        for piece, start, end in bounds:
            if end > start:
                buffer[start:end].view(piece.data.dtype).copy_(piece.data, non_blocking=True)
        if _on_gpu(slices):
            torch.cuda.current_stream().synchronize()
        return Snapshot(bounds, buffer)


def _layout(slices: Sequence[Slice]) -> tuple[list[tuple[Slice, int, int]], int]:
    """First and last byte of every slice, and the bytes of all."""
    bounds, total = [], 0
    for piece in slices:
        width = piece.data.element_size()
        start = -(-total // width) * width  # a view of bytes must begin at a multiple of its element
        total = start + piece.data.numel() * width
        bounds.append((piece, start, total))
    return bounds, total


def _on_gpu(slices: Sequence[Slice]) -> bool:
    return any(piece.data.is_cuda for piece in slices)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
