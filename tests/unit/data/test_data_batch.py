"""A batch's way to the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinoctl.data.assemble import Layout
from dinoctl.data.batch import Batch, to_batch, to_device

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batch_of(seed: int, lanes: int = 32, size: int = 112) -> Batch:
    layout = Layout(lanes=lanes, global_size=size, local_count=2, local_size=56, patches=64)
    arrays = layout.views(memoryview(bytearray(np.random.default_rng(seed).bytes(layout.bytes))))
    arrays.masks[:] = np.random.default_rng(seed).random(arrays.masks.shape) < 0.3
    return to_batch(seed, arrays)


def assert_equal(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value.cpu(), other.cpu()) if torch.is_tensor(value) else value == other, name


def test_on_the_cpu_nothing_is_copied() -> None:
    batch = batch_of(0)
    moved = to_device(batch, "cpu")
    assert all(value is getattr(batch, name) for name, value in vars(moved).items())


@GPU
def test_the_host_does_not_wait_for_copies() -> None:
    batch = batch_of(0)
    to_device(batch, "cuda")  # memory is locked the first time
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of work, which copies queue behind
    moved = to_device(batch, "cuda")
    after = torch.cuda.Event()
    after.record()
    assert not after.query(), "the host came back while the device was still at work"
    assert_equal(moved, batch)


@GPU
def test_memory_is_not_given_out_again_before_its_copy_is_done() -> None:
    torch.cuda._sleep(500_000_000)
    moved = [to_device(batch_of(seed), "cuda") for seed in range(12)]
    for seed, one in enumerate(moved):
        assert_equal(one, batch_of(seed))
