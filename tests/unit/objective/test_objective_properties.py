"""What holds for all inputs: balance, invariances, half precision, extreme and empty inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinoctl.objective import (
    SinkhornKnopp,
    SoftmaxCenter,
    cross_entropy,
    dino_global_loss,
    dino_local_loss,
    feature_std,
    ibot_loss,
    koleo_loss,
    prototype_usage,
    sinkhorn_knopp,
    soft_cross_entropy,
    target_entropy,
)

HALVES = [torch.float16, torch.bfloat16]
SHAPES = st.tuples(st.integers(1, 12), st.integers(2, 40))


def normal(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_sinkhorn(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """The textbook form, in float64 and with every normalisation written out."""
    q = (logits.double() / temperature - logits.double().max() / temperature).exp()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * q.shape[1]
        q /= q.sum(1, keepdim=True) * q.shape[0]
    return q * q.shape[0]


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 99), st.floats(0.03, 1.0), st.integers(1, 5))
def test_sinkhorn_is_the_textbook_form(shape: tuple[int, int], seed: int, temperature: float, iterations: int) -> None:
    logits = normal(*shape, seed=seed)
    targets = sinkhorn_knopp(logits, temperature, iterations=iterations)
    torch.testing.assert_close(targets.double(), plain_sinkhorn(logits, temperature, iterations), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(targets.sum(1), torch.ones(shape[0]), rtol=1e-5, atol=0.0)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 99), st.floats(-100, 100))
def test_sinkhorn_ignores_a_constant(shape: tuple[int, int], seed: int, shift: float) -> None:
    logits = normal(*shape, seed=seed)
    torch.testing.assert_close(sinkhorn_knopp(logits + shift, 0.1), sinkhorn_knopp(logits, 0.1), rtol=2e-3, atol=1e-5)


def test_sinkhorn_uses_prototypes_equally() -> None:
    targets = sinkhorn_knopp(normal(64, 16), 0.1, iterations=50)
    torch.testing.assert_close(targets.sum(0), torch.full((16,), 4.0), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_sinkhorn_of_extreme_logits_is_finite(scale: float) -> None:
    logits = normal(6, 9, scale=scale)
    logits[0] -= 10 * scale  # a sample far below all others in every prototype
    logits[:, 1] -= 10 * scale  # a prototype that nobody is near to
    targets = sinkhorn_knopp(logits, 0.04)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(6), rtol=1e-4, atol=0.0)


def test_sinkhorn_leaves_its_input_alone_and_checks_iterations() -> None:
    logits = normal(4, 5)
    before = logits.clone()
    sinkhorn_knopp(logits, 1.0)
    SoftmaxCenter(5)(logits, 1.0)
    assert torch.equal(logits, before)
    with pytest.raises(ValueError, match="at least 1 iteration"):
        sinkhorn_knopp(logits, 0.1, iterations=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 20), st.integers(0, 99), st.booleans())
def test_cross_entropy_is_that_of_autograd(period: int, repeats: int, k: int, seed: int, tiny_chunks: bool) -> None:
    logits = normal(period * repeats, k, seed=seed).double().requires_grad_()
    targets = normal(period, k, seed=seed + 1, scale=1.0).abs()
    weights = normal(period * repeats, seed=seed + 2)
    plain = -(targets.double().repeat(repeats, 1) * (logits / 0.1).log_softmax(-1)).sum(-1)
    (gradient,) = torch.autograd.grad((plain * weights).sum(), logits)
    single = logits.detach().float().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "_CHUNK", 7 if tiny_chunks else 1 << 20)
        ours = soft_cross_entropy(single, targets, 0.1)
        (ours * weights).sum().backward()
    torch.testing.assert_close(ours.double(), plain.detach(), rtol=1e-4, atol=1e-4)
    assert single.grad is not None
    torch.testing.assert_close(single.grad.double(), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("loss", ["dino", "ibot"])
def test_half_precision_logits_lose_only_their_own_rounding(dtype: torch.dtype, loss: str) -> None:
    student, targets = normal(8, 64).to(dtype).requires_grad_(), sinkhorn_knopp(normal(8, 64, seed=1).to(dtype), 0.04)
    exact = student.detach().float().requires_grad_()
    for logits in (student, exact):
        with torch.autocast("cpu", dtype, enabled=logits is student):
            if loss == "dino":
                value = dino_global_loss(logits, targets, temperature=0.1, local_crops=2)
            else:
                value = ibot_loss(logits, targets, torch.ones(8), temperature=0.1, crops=8)
        assert value.dtype == torch.float32
        value.backward()
    assert student.grad is not None
    assert exact.grad is not None
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad, exact.grad.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    logits, features = normal(8, 64), normal(8, 32)
    plain = sinkhorn_knopp(logits, 0.04), SoftmaxCenter(64)(logits, 0.04), koleo_loss(features)
    with torch.autocast("cpu", dtype):
        under = sinkhorn_knopp(logits, 0.04), SoftmaxCenter(64)(logits, 0.04), koleo_loss(features)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_koleo_of_equal_images_is_finite(dtype: torch.dtype) -> None:
    features = normal(6, 16).to(dtype)
    features[1] = features[0]
    features.requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_koleo_neighbours_are_found_in_fp32_under_autocast() -> None:
    # Seen from the first row the third is nearer than the second, by less than bf16 can tell.
    degrees = torch.tensor([0.0, 1.0, -0.9, 90.0]).deg2rad()
    features = torch.stack([degrees.cos(), degrees.sin()], 1)
    with torch.autocast("cpu", torch.bfloat16):
        under = koleo_loss(features)
    assert torch.equal(under, koleo_loss(features))


def test_koleo_needs_two_images() -> None:
    with pytest.raises(ValueError, match=r"at least 2, got 1: raise globalBatch"):
        koleo_loss(normal(1, 8))


@pytest.mark.parametrize("module", [SinkhornKnopp(), SoftmaxCenter(7)], ids=["sinkhorn", "softmax"])
def test_no_masked_tokens(module: torch.nn.Module) -> None:
    student = torch.zeros(0, 7, requires_grad=True)
    loss = ibot_loss(student, module(torch.zeros(0, 7), 0.1), torch.zeros(0), temperature=0.1, crops=4)
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert all((buffer == 0).all() for buffer in module.buffers()), "no rows, no change"


def test_center_is_complete_fp32_state() -> None:
    module = SoftmaxCenter(5, momentum=0.5)
    module(normal(4, 5), 0.1)
    restored = SoftmaxCenter(5, momentum=0.5)
    restored.load_state_dict(module.state_dict())
    later = normal(4, 5, seed=1)
    assert torch.equal(module(later, 0.1), restored(later, 0.1))
    assert torch.equal(module.center, restored.center)
    center = module.center.clone()
    assert module.bfloat16().center.dtype == torch.float32
    assert torch.equal(module.center, center)
    assert torch.equal(module.eval()(later, 0.1), module.targets(later, 0.1))
    assert torch.equal(module.center, center)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit targets"):
        soft_cross_entropy(normal(3, 4), normal(2, 4), 0.1)
    with pytest.raises(ValueError, match="two views"):
        dino_global_loss(normal(3, 4), normal(3, 4), temperature=0.1, local_crops=0)
    with pytest.raises(ValueError, match="5 local rows"):
        dino_local_loss(normal(5, 4), normal(4, 4), temperature=0.1)
    with pytest.raises(ValueError, match="do not fit"):
        ibot_loss(normal(3, 4), normal(3, 4), torch.ones(2), temperature=0.1, crops=2)


def test_indicators() -> None:
    uniform, sure = torch.full((3, 8), 1 / 8), torch.eye(8)[:3]
    assert target_entropy(uniform).item() == pytest.approx(torch.tensor(8.0).log().item())
    assert target_entropy(sure) == 0
    assert prototype_usage(100 * torch.eye(8), 0.1).item() == pytest.approx(torch.tensor(8.0).log().item())
    assert prototype_usage(100 * sure[:1].repeat(5, 1), 0.1) == 0
    assert feature_std(normal(1, 16).repeat(4, 1)) < 1e-3
    assert feature_std(normal(500, 16)) == pytest.approx(1.0, abs=0.01)
