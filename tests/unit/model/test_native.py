"""The CPU kernels give what the tensor operations give, with the same bits each time, or say why they are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoctl.model import branches
from dinoctl.model.fused import _kernels, attend_packed
from dinoctl.model.native import branches as native
from dinoctl.model.native import build
from dinoctl.model.native.build import why_not
from dinoctl.model.packing import Group

DIM, WIDTH, ROWS, KEPT = 48, 80, 301, 190
CASES = list(product([False, True], [False, True]))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several threads with several chunks each, the last one shorter."""
    reason = why_not()
    if reason is not None and "no C++ compiler" in reason:
        pytest.skip(reason)
    assert reason is None
    monkeypatch.setattr(native, "_ROWS", (8, 16))
    monkeypatch.setattr(native, "_QUERIES", 8)
    monkeypatch.setattr(native, "_SCORES", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def pair(out: int, inner: int) -> tuple[Tensor, Tensor]:
    return draw(out, inner) * 0.3, draw(out)


NORM = (1 + 0.1 * draw(DIM, seed=1), 0.1 * draw(DIM, seed=2))


def kept(some: bool) -> tuple[Tensor, Tensor | None, branches.Spans]:
    """The rows that a branch works on, where they lie, and their scales."""
    x = draw(ROWS, DIM)
    if not some:
        return x, None, [(slice(0, ROWS), 1.0)]
    rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))[:KEPT].sort().values
    return x[rows], rows, [(slice(0, 70), 1.5), (slice(70, KEPT), 1.25)]


def assert_close(ours: Any, theirs: Any) -> None:
    for one, other in zip(flattened(ours), flattened(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5 * max(1.0, other.abs().max().item()))


def flattened(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flattened(part)]


def both(name: str, *arguments: Any, **options: Any) -> None:
    ours = getattr(native, name)(*arguments, **options)
    assert_close(ours, getattr(branches, name)(*arguments, **options))
    again = getattr(native, name)(*arguments, **options)
    assert all(torch.equal(one, other) for one, other in zip(flattened(ours), flattened(again), strict=True))


@pytest.mark.parametrize("some", [False, True])
def test_norm_and_linear(some: bool) -> None:
    source, rows, _ = kept(some)
    weight, bias = pair(3 * DIM, DIM)
    both("norm_linear", source, NORM, 1e-6, (weight, bias))
    both("norm_linear_backward", source, rows, NORM, 1e-6, weight, draw(len(source), 3 * DIM), draw(ROWS, DIM, seed=9))


@pytest.mark.parametrize(("some", "pieces"), CASES)
def test_linear_onto_the_residual(some: bool, pieces: bool) -> None:
    source, rows, spans = kept(some)
    flat, linear = draw(len(source), WIDTH), pair(DIM, WIDTH)
    parts = list(flat.split(100)) if pieces else [flat]
    both("add_linear", draw(ROWS, DIM), parts, rows, spans, linear)
    both("add_linear_backward", parts, rows, spans, linear[0], draw(ROWS, DIM, seed=9))


@pytest.mark.parametrize(("some", "gated"), CASES)
def test_feed_forward(some: bool, gated: bool) -> None:
    source, rows, spans = kept(some)
    inner, outer = pair(WIDTH, DIM), pair(DIM, WIDTH // 2 if gated else WIDTH)
    forward = draw(ROWS, DIM), source, rows, spans, NORM, 1e-6, inner, outer
    ours, stored = native.feed_forward(*forward, gated=gated, store=True)
    assert_close(ours, branches.feed_forward(*forward, gated=gated, store=False)[0])
    backward = rows, spans, NORM, 1e-6, inner, outer[0], draw(ROWS, DIM, seed=9)
    both("feed_forward_backward", source, None, *backward, gated=gated)
    theirs = branches.feed_forward_backward(source, None, *backward, gated=gated)
    assert_close(native.feed_forward_backward(source, stored, *backward, gated=gated), theirs)


def test_activations_far_from_zero() -> None:
    """Where exponentials under- and overflow, and infinity and NaN stay what they are."""
    values = torch.tensor(
        [-1e34, -1e30, -200.0, -40.0, -6.0, -1e-6, 0.0, 1e-6, 6.0, 40.0, 200.0, 200.5, 1e4, float("nan")]
    )
    x = torch.zeros(len(values), DIM)
    inner = (torch.zeros(len(values), DIM), values)
    for gated, outer in ((False, torch.eye(len(values))), (True, torch.eye(len(values) // 2))):
        padded = torch.zeros(DIM, outer.shape[0])
        padded[: len(outer)] = outer
        arguments = x, x, None, [(slice(0, len(x)), 1.0)], NORM, 1e-6, inner, (padded, torch.zeros(DIM))
        ours, _ = native.feed_forward(*arguments, gated=gated, store=True)
        theirs, _ = branches.feed_forward(*arguments, gated=gated, store=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-7, equal_nan=True)


@pytest.mark.parametrize("size", [16, 20, 64])
def test_attention(size: int) -> None:
    heads, layout = 3, (Group(4, 21), Group(9, 5), Group(1, 1))
    rows = sum(crops * tokens for crops, tokens in layout)
    qkv = (2 * draw(rows, 3 * heads * size)).requires_grad_()
    direction = draw(rows, heads * size, seed=5)
    ours = attend_packed(qkv, layout, heads)
    (gradient,) = torch.autograd.grad((ours * direction).sum(), qkv)
    outputs, start = [], 0
    for crops, tokens in layout:
        part = qkv[start : start + crops * tokens].view(crops, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
        result = torch.nn.functional.scaled_dot_product_attention(*part.unbind(0))
        outputs.append(result.transpose(1, 2).reshape(crops * tokens, heads * size))
        start += crops * tokens
    theirs = torch.cat(outputs)
    assert_close(ours, theirs)
    assert_close(gradient, torch.autograd.grad((theirs * direction).sum(), qkv)[0])


def test_weights_that_are_not_dense_fp32_are_left_to_tensor_operations() -> None:
    source, rows, spans = kept(False)
    linear = pair(DIM, DIM)
    for weight in (linear[0].t(), linear[0].bfloat16()):
        with pytest.raises(ValueError, match="dense fp32"):
            native.add_linear(source, [source], rows, spans, (weight, linear[1]))
    assert _kernels(source, (linear[0],)) is native
    assert _kernels(source, (linear[0].t(),)) is branches
    assert _kernels(source, (linear[0].bfloat16(),)) is branches


def test_sums_that_would_be_large_are_no_matter_where_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_SUMS_BYTES", 1000)
    source, weight = draw(ROWS, DIM), draw(DIM, DIM)
    assert _kernels(source, (weight,)) is branches
    assert _kernels(source, (weight,), backward=False) is native


def test_pieces_without_rows() -> None:
    source, rows, spans = kept(False)
    parts, linear = [source, source[:0]], pair(DIM, DIM)
    both("add_linear", draw(ROWS, DIM), parts, rows, spans, linear)


def test_a_value_that_is_not_finite_reaches_the_loss() -> None:
    layout = (Group(2, 20),)
    qkv = draw(40, 3 * 32)
    qkv[7, 3] = float("nan")
    out = attend_packed(qkv, layout, 2)
    assert out[7].isnan().any()
    assert out[20:].isfinite().all()


PROBE = "from dinoctl.model.native.build import why_not; print(why_not())"


def probe(cache: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "DINOCTL_CACHE_DIR"}
    everything = {**inherited, "XDG_CACHE_HOME": str(cache), **environment}
    return subprocess.Popen([sys.executable, "-c", PROBE], env=everything, stdout=subprocess.PIPE, text=True)


def test_many_processes_build_at_once(tmp_path: Path) -> None:
    several = [probe(tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in several] == ["None"] * 2
    (file,) = (tmp_path / "dinoctl").iterdir()
    assert file.suffix == ".so"


def test_a_damaged_library_is_built_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert probe(tmp_path).communicate(timeout=120)[0].strip() == "None"
        (file,) = (tmp_path / "dinoctl").iterdir()
        assert file.stat().st_size > 1000
        file.write_bytes(b"")


def test_why_there_are_none(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    for environment, said in (
        ({"DINOCTL_NATIVE": "0"}, "DINOCTL_NATIVE is 0"),
        ({"CXX": "false"}, "false failed"),
        ({"XDG_CACHE_HOME": str(occupied)}, "set DINOCTL_CACHE_DIR"),
    ):
        output, _ = probe(tmp_path, **environment).communicate(timeout=120)
        assert said in output


def test_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a user or an administrator says, never in a place that everybody may write to."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DINOCTL_CACHE_DIR", str(tmp_path / "chosen"))
    assert build._cache() == tmp_path / "chosen"
    monkeypatch.delenv("DINOCTL_CACHE_DIR")
    assert build._cache() == tmp_path / "xdg" / "dinoctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build._cache() == tmp_path / "home" / ".cache" / "dinoctl"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(build.NoKernels, match=r"no home directory .* set DINOCTL_CACHE_DIR"):
        build._cache()


def test_those_of_the_installation_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image brings them for the processor that it was made on; others are built in the node's cache."""
    monkeypatch.setenv("DINOCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    kept = build._library()[0]
    assert kept.parent == tmp_path / "cache"
    installed = tmp_path / "prefix" / "share" / "dinoctl" / kept.name
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert build._library()[0] == installed
