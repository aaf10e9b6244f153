"""How networks run changes speed and memory, not results."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoctl.data.batch import normalise
from dinoctl.model import ViTConfig
from dinoctl.spec.compute import Compute
from dinoctl.spec.recipe import Head, Heads, Losses
from dinoctl.training.execution import set_execution
from dinoctl.training.learner import Learner, pretraining_learner
from dinoctl.training.networks import build_network

CPU = torch.device("cpu")


def learner() -> Learner:
    config = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=4, img_size=16, layerscale=0.5, drop_path=0.4)
    heads = Heads(dino=Head(prototypes=24, hidden=16, bottleneck=8), ibot=None)
    return pretraining_learner(build_network(config, heads, generator=torch.Generator().manual_seed(0)), Losses())


def gradients(trained: Learner) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 16, generator=generator) < 0.4
    loss, _ = trained(
        torch.randn(6, 3, 16, 16, generator=generator),
        torch.randn(9, 3, 8, 8, generator=generator),
        masks,
        masks.flatten().nonzero().flatten(),
        (1 / masks.sum(1)).repeat_interleave(masks.sum(1)),
        0.05,
        7,
    )
    loss.backward()
    return {name: p.grad for name, p in trained.named_parameters() if p.grad is not None} | {"loss": loss.detach()}


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_result(mode: Any) -> None:
    usual, other = learner(), learner()
    set_execution(usual, Compute(), CPU)
    set_execution(other, Compute(activation_checkpointing=mode), CPU)
    assert other.student.backbone.activation_checkpointing == (mode == "full")
    assert all(block.recompute == (mode == "selective") for block in other.student.backbone.blocks)
    expected = gradients(usual)
    for name, value in gradients(other).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_blocks_change_no_result(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.nn.Module.compile
    # Traced as ever, without the C++ compiler's half minute.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    usual, other = learner(), learner()
    set_execution(other, Compute(compile=True, activation_checkpointing=mode), CPU)
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in usual.named_parameters()]
    expected = gradients(usual)
    for name, value in gradients(other).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="use activationCheckpointing none or full"):
        Compute(compile=True, activation_checkpointing="selective")


FAULTS = """
import resource, torch
from dinoctl.training.execution import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(50_000_000).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
print(min(faults() for _ in range(6)))  # small allocations may take the beginning of what was freed, for a while
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: the heap of one that has run other tests may have no room in one piece."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 1000, "48,800 pages each time"


def test_normalise() -> None:
    crops = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
    expected = torch.tensor([[-1.0, -1.0, 0.0], [1.0, 3.0, 0.5]]).view(2, 3, 1, 1)
    for _ in range(2):
        torch.testing.assert_close(normalise(crops, mean, std), expected)
