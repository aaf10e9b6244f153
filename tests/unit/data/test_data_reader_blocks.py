"""Blocks of memory that pieces are received in: what went in comes out, and memory is used again."""

from __future__ import annotations

import io

import numpy as np
from google_crc32c import value as crc32c

from dinoctl.data.reader.blocks import BLOCK, Blocks, Body


def received(blocks: Blocks, data: bytes, step: int = 2**30) -> Body:
    body, source = Body(blocks), io.BytesIO(data)
    body.fill(lambda view: source.readinto(view[:step]))
    return body


def test_parts_are_what_was_received_wherever_they_lie() -> None:
    data = np.random.default_rng(0).bytes(3 * BLOCK + 17)
    spans = [(0, 1), (1, BLOCK), (BLOCK, BLOCK), (BLOCK - 5 + 5, 2 * BLOCK + 3), (2 * BLOCK + 3, len(data))]
    for step in (1000, 2**30):
        body = received(Blocks(), data, step)
        assert body.size == len(data)
        parts = body.parts(spans)
        assert [part.crc() for part in parts] == [crc32c(data[start:end]) for start, end in spans]
        assert [part.take() for part in parts] == [data[start:end] for start, end in spans]


def test_a_block_is_used_again_when_the_last_sample_in_it_was_taken() -> None:
    blocks = Blocks()
    spans = [(0, 10), (10, BLOCK + 1), (BLOCK + 1, 2 * BLOCK)]
    first, second, third = received(blocks, bytes(3 * BLOCK - 1)).parts(spans)
    unused = blocks.get()
    assert len(blocks._spare) == 0, "only the last block holds no part"
    first.take()
    assert not blocks._spare
    third.drop()
    assert not blocks._spare, "the second part lies in both"
    second.take()
    assert len(blocks._spare) == 2
    assert all(block is not unused for block in blocks._spare)


def test_what_is_spare_is_bounded() -> None:
    blocks = Blocks()
    for part in received(blocks, bytes(100 * BLOCK)).parts([(i * BLOCK, (i + 1) * BLOCK) for i in range(100)]):
        part.drop()
    assert 0 < len(blocks._spare) < 100
