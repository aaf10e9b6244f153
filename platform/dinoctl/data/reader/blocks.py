"""Memory for what comes over the network: blocks of one size, used again and again.

A piece (see `plan`) is spread over as many blocks as it needs, and a block is free again as soon as every sample in it
was taken. So what is resident is what was received and not taken yet, where a buffer a piece would stay whole until its
last sample is taken, and an allocator would keep what it holds for sizes that never fit again.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence

import numpy as np
from google_crc32c import extend as crc32c
from numpy.typing import NDArray

BLOCK = 2**18
"""Bytes of a block: a few samples of the usual size."""
_SPARE = 32  # blocks kept for the next piece; the others go back to the system

Block = NDArray[np.uint8]


class Blocks:
    """Blocks of one reader. Safe to use from several threads: it only appends to a list and pops from it."""

    def __init__(self) -> None:
        self._spare: list[Block] = []

    def get(self) -> Block:
        """One that nobody uses."""
        try:
            return self._spare.pop()
        except IndexError:  # not malloc's memory, which keeps what is between blocks that are in use
            return np.frombuffer(mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)

    def put(self, block: Block) -> None:
        """Nobody uses it any more."""
        if len(self._spare) < _SPARE:
            self._spare.append(block)


class Body:
    """What a request brought. Its parts, once they are asked for, each hold the blocks that they lie in."""

    def __init__(self, blocks: Blocks) -> None:
        self._home = blocks
        self._blocks: list[Block | None] = []
        self._users: list[int] = []
        self.size = 0

    def fill(self, readinto: Callable[[memoryview], int]) -> None:
        """All that ``readinto`` gives until it gives nothing."""
        room = 0
        while True:
            if not room:
                block = self._home.get()
                self._blocks.append(block)
                room = BLOCK
            got = readinto(block.data[BLOCK - room :])
            if not got:
                return
            self.size += got
            room -= got

    def parts(self, spans: Sequence[tuple[int, int]]) -> list[Part]:
        """The bytes [start, end) of each span, which overlap nowhere. Blocks that none lies in are let go."""
        self._users = [0] * len(self._blocks)
        parts = [Part(self, start, end) for start, end in spans]
        for part in parts:
            for number in part.blocks:
                self._users[number] += 1
        for number, users in enumerate(self._users):
            if not users:
                self._free(number)
        return parts

    def views(self, start: int, end: int) -> list[Block]:
        """Bytes [start, end), in as many views as they have blocks."""
        return [
            block[max(start - number * BLOCK, 0) : end - number * BLOCK]
            for number in _numbers(start, end)
            if (block := self._blocks[number]) is not None
        ]

    def leave(self, numbers: range) -> None:
        """A part needs these blocks no more."""
        for number in numbers:
            self._users[number] -= 1
            if not self._users[number]:
                self._free(number)

    def _free(self, number: int) -> None:
        block, self._blocks[number] = self._blocks[number], None
        if block is not None:
            self._home.put(block)


class Part:
    """A sample's bytes as they were received. One thread uses it at a time; `take` or `drop` it once."""

    __slots__ = ("_body", "_end", "_start")

    def __init__(self, body: Body, start: int, end: int) -> None:
        self._body, self._start, self._end = body, start, end

    @property
    def blocks(self) -> range:
        """Numbers of the blocks that it lies in."""
        return _numbers(self._start, self._end)

    def crc(self) -> int:
        """CRC-32C."""
        crc = 0
        for view in self._body.views(self._start, self._end):
            crc = crc32c(crc, view)
        return crc

    def take(self) -> bytes:
        """A copy; the memory is free for others then."""
        data = b"".join(view.data for view in self._body.views(self._start, self._end))
        self.drop()
        return data

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._body.leave(self.blocks)


def _numbers(start: int, end: int) -> range:
    return range(start // BLOCK, -(-end // BLOCK))
