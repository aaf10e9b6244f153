"""The engines agree: one process, two with DistributedDataParallel and two with ZeRO-3 do the same steps on the same
batches, and read each other's checkpoints.

Everything that needs two processes happens in one pair of them (importing DeepSpeed takes its time) and is written to
files; the tests compare. KoLeo is left out where world sizes are compared: it looks at the images of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from dinoctl.model import ViTConfig
from dinoctl.spec.compute import Compute
from dinoctl.spec.recipe import Head, Heads, LearningRate, Losses, Optimizer, Schedules, TeacherTemperature
from dinoctl.training.context import ProcessContext
from dinoctl.training.engines.base import Engine
from dinoctl.training.engines.build import build_engine
from dinoctl.training.groups import apply, parameter_groups, submodule
from dinoctl.training.learner import Learner, distillation_learner, pretraining_learner
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity
from dinoctl.training.networks import Network, build_network
from dinoctl.training.schedules import RecipeSchedules
from support.ranks import run_ranks

WORLD, IMAGES, STEPS, LR = 2, 6, 6, 1e-3
OPTIMIZER = Optimizer(layer_decay=0.9)
SCHEDULES = RecipeSchedules(
    Schedules(
        learning_rate=LearningRate(base=LR, scaling="none", warmup_steps=2),
        teacher_temperature=TeacherTemperature(warmup_steps=2),
        freeze_last_layer_steps=1,
    ),
    steps=STEPS,
    global_batch=IMAGES,
)
CLIP = 0.5  # below the norms of these gradients, so that it takes effect
# Two ranks add up in another order than one process. AdamW divides by the gradient's own size, so that a gradient
# which is nothing but rounding moves a weight by up to the learning rate: weights agree to a share of it (seen: 3e-4,
# in a bias of keys, whose true gradient is 0). Losses were off by 1e-7, moments by 2e-6 of the largest, averages by
# 3e-9.
LOSS_RTOL, NORM_RTOL, MOMENT_RTOL, WEIGHT_ATOL, AVERAGE_ATOL = 2e-6, 2e-5, 2e-5, 2e-3 * LR, 1e-7

State = dict[tuple[str, str], Tensor]


def network(seed: int = 0, **changes: Any) -> Network:
    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16, "registers": 1}
    heads = Heads(dino=Head(prototypes=24, hidden=16, bottleneck=8), ibot=Head(prototypes=20, hidden=16, bottleneck=8))
    config = ViTConfig(**{**shape, "layerscale": 0.5, **changes})
    return build_network(config, heads, generator=torch.Generator().manual_seed(seed))


def pretraining() -> Learner:
    return pretraining_learner(network(), Losses(koleo=0.0))


def softmax() -> Learner:
    return pretraining_learner(network(), Losses(koleo=0.0, centering="softmax"))


def distillation() -> Learner:
    return distillation_learner(network(0), network(1, embed_dim=24, depth=3), Losses(koleo=0.0))


def batch(step: int, rank: int, world: int, images: int = IMAGES) -> tuple[Tensor, ...]:
    """A rank's images of the step's batch."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.rand(2 * images, 16, generator=generator) < 0.4
    masks[1::images] = False
    whole = (
        torch.randn(2 * images, 3, 16, 16, generator=generator),
        torch.randn(2 * images, 3, 8, 8, generator=generator),
        masks,
    )
    own = slice(rank * images // world, (rank + 1) * images // world)
    crops, local, masks = (one.view(2, images, *one.shape[1:])[:, own].flatten(0, 1) for one in whole)
    counts = masks.sum(1)
    return crops, local, masks, masks.flatten().nonzero().flatten(), (1 / counts.clamp(min=1)).repeat_interleave(counts)


def engine_of(name: str, learner: Learner, precision: str = "fp32") -> Engine:
    compute = Compute.model_validate({"engine": {"name": name}, "precision": precision})
    groups = parameter_groups(learner.named_parameters(), depth=2, optimizer=OPTIMIZER)
    return build_engine(compute, learner, groups, OPTIMIZER, ProcessContext(torch.device("cpu")))


@dataclass
class Training:
    """An engine that trains step by step, with its checkpoints in a directory."""

    engine: Engine
    folder: Path
    losses: list[float] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    done: int = 0
    schedules: RecipeSchedules = SCHEDULES

    def __post_init__(self) -> None:
        who = WriterIdentity(1, self.engine.rank, self.engine.world, "spec", "run", 0, {})
        self.writer = LedgerWriter(Ledger(LocalStorage(self.folder)), who, keep=99, commit_timeout_s=60)

    def to(self, step: int) -> Training:
        engine = self.engine
        while self.done < step:
            values = self.schedules.at(self.done)
            apply(engine.groups, values)
            if values.refresh_gram:
                engine.copy("teacher.backbone.", "gram.")
            inputs = batch(self.done, engine.rank, engine.world)
            loss, _ = engine.forward(*inputs, values.teacher_temperature, self.done, values.gram_weight)
            engine.backward(loss)
            self.norms = {name: float(norm) for name, norm in engine.clip(CLIP).items()}
            engine.step()
            engine.average(values.momentum)
            self.losses.append(mean_over_ranks(loss.detach()))
            self.done += 1
        return self

    def save(self) -> Training:
        self.writer.save(self.done, self.engine.slices())
        self.writer.wait()
        return self

    def load(self, folder: Path, step: int) -> Training:
        ledger = Ledger(LocalStorage(folder))
        commit = ledger.commit(step)
        assert commit is not None
        self.engine.load(Checkpoint(ledger.storage, commit).read, step)
        self.done, self.losses = step, []
        return self

    def finish(self) -> dict[str, Any]:
        self.writer.close()
        return {"losses": self.losses, "norms": self.norms, "teacher": dict(self.engine.full_teacher())}


def mean_over_ranks(loss: Tensor) -> float:
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return float(loss)


def state(folder: Path, step: int) -> State:
    ledger = Ledger(LocalStorage(folder))
    commit = ledger.commit(step)
    assert commit is not None, f"{folder.name} has no step {step}"
    checkpoint = Checkpoint(ledger.storage, commit)
    kinds = ("param", "adam_m", "adam_v", "teacher", "buffer")
    return {(kind, name): checkpoint.tensor(kind, name) for kind in kinds for name in checkpoint.names(kind)}


def two_processes(rank: int, root: Path) -> None:
    results: dict[str, Any] = {}

    def trained(name: str, engine: str, learner: Callable[[], Learner] = pretraining, at: Iterable[int] = (5,)) -> None:
        training = Training(engine_of(engine, learner()), root / name)
        for step in at:
            training.to(step).save()
        results[name] = training.finish()

    def resumed(name: str, origin: str, learner: Callable[[], Learner] = pretraining, *, after: int = 0) -> None:
        """From step 3 of ``origin``, in an engine that has done ``after`` steps already."""
        training = Training(engine_of("deepspeed", learner()), root / name).to(after).load(root / origin, 3)
        results[name] = training.to(STEPS).save().finish()

    trained("ddp", "ddp", at=(3, 5, 6))
    trained("zero", "deepspeed", at=(3, 5, 6))
    trained("zero-softmax", "deepspeed", softmax, at=(3, 6))
    trained("zero-distill", "deepspeed", distillation, at=(3, 6))
    resumed("zero-zero", "zero")
    resumed("zero-used", "zero", after=2)
    resumed("softmax-zero", "zero-softmax", softmax)
    resumed("distill-zero", "zero-distill", distillation)
    resumed("one-zero", "one")
    results["clip"] = clip_of_zero()
    for name in ("ddp", "deepspeed"):
        half = Training(engine_of(name, pretraining_learner(network(), Losses()), "bf16"), root / f"bf16-{name}")
        results[f"bf16-{name}"] = half.to(3).finish() | {
            "state": {piece.name: piece.data.clone() for piece in half.engine.slices()}
        }
    if rank == 0:
        torch.save(results, root / "results.pt")


def clip_of_zero() -> dict[str, Any]:
    """Whole gradients before and after clipping, and the norms that clipping told."""
    from deepspeed.utils import safe_get_full_grad

    learner = pretraining()
    engine = engine_of("deepspeed", learner)
    loss, _ = engine.forward(*batch(0, engine.rank, engine.world), 0.05, 0)
    engine.backward(loss)
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    before = {name: safe_get_full_grad(p).clone() for name, p in trained.items()}
    norms = {name: norm.clone() for name, norm in engine.clip(CLIP).items()}
    after = {name: safe_get_full_grad(p).clone() for name, p in trained.items()}
    engine.step()
    return {"before": before, "norms": norms, "after": after}


@dataclass(frozen=True)
class Found:
    root: Path
    results: dict[str, Any]
    one: dict[str, Any]

    def state(self, name: str, step: int) -> State:
        return state(self.root / name, step)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("engines")
    torch.set_num_threads(1)
    one = Training(engine_of("ddp", pretraining()), root / "one")
    for step in (3, 5, 6):
        one.to(step).save()
    outcome = one.finish()
    Training(engine_of("ddp", distillation()), root / "one-distill").to(3).save().to(6).save().finish()
    run_ranks(two_processes, WORLD, root)
    return Found(root, torch.load(root / "results.pt", weights_only=True), outcome)


def assert_agree(ours: State, theirs: State, weight_atol: float = WEIGHT_ATOL) -> None:
    assert ours.keys() == theirs.keys()
    off = {key: float((ours[key] - theirs[key]).abs().max()) for key in ours if ours[key].numel()}
    for (kind, name), error in off.items():
        size = MOMENT_RTOL * float(theirs[kind, name].abs().max())
        limit = {"param": weight_atol, "teacher": AVERAGE_ATOL}.get(kind, size)
        assert error <= limit, (kind, name, error, limit)


def assert_equal(ours: State, theirs: State) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def whole(learner: Learner) -> set[tuple[str, str]]:
    """What a checkpoint has to hold."""
    trained = [name for name, p in learner.named_parameters() if p.requires_grad]
    average = "teacher." if learner.ema is None else "ema."
    averaged = [name for name, _ in learner.named_parameters() if name.startswith(average)]
    expected = {(kind, name) for kind in ("param", "adam_m", "adam_v") for name in trained}
    return expected | {("teacher", name) for name in averaged} | {("buffer", n) for n, _ in learner.named_buffers()}


def test_training_changes_everything_that_is_trained(found: Found) -> None:
    """So that agreement means something."""
    start = {("param", name): p.detach() for name, p in pretraining().named_parameters()}
    end = found.state("one", 6)
    still = [key for key, value in end.items() if key[0] == "param" and torch.equal(value, start[key])]
    assert still == []
    assert all(math.isfinite(loss) for loss in found.one["losses"])
    assert found.one["losses"][0] != found.one["losses"][1]


@pytest.mark.parametrize("engine", ["ddp", "zero"])
def test_two_processes_agree_with_one(found: Found, engine: str) -> None:
    assert found.results[engine]["losses"] == pytest.approx(found.one["losses"], rel=LOSS_RTOL)
    assert found.results[engine]["norms"] == pytest.approx(found.one["norms"], rel=NORM_RTOL)
    for step in (3, 5, 6):
        assert_agree(found.state(engine, step), found.state("one", step))


def test_zero_agrees_with_ddp(found: Found) -> None:
    assert found.results["zero"]["losses"] == pytest.approx(found.results["ddp"]["losses"], rel=LOSS_RTOL)
    assert_agree(found.state("zero", 5), found.state("ddp", 5))


@pytest.mark.parametrize(
    ("origin", "again"),
    [("zero", "zero-zero"), ("zero", "zero-used"), ("zero-softmax", "softmax-zero"), ("zero-distill", "distill-zero")],
)
def test_zero_goes_on_from_its_own_checkpoint_bit_by_bit(found: Found, origin: str, again: str) -> None:
    assert found.results[again]["losses"] == found.results[origin]["losses"][3:]
    assert_equal(found.state(again, 6), found.state(origin, 6))


def test_zero_goes_on_from_a_checkpoint_of_one_process(found: Found) -> None:
    assert found.results["one-zero"]["losses"] == pytest.approx(found.one["losses"][3:], rel=LOSS_RTOL)
    assert_agree(found.state("one-zero", 6), found.state("one", 6))


@pytest.mark.parametrize("origin", ["one", "ddp", "zero"])
def test_one_process_goes_on_from_a_checkpoint_of_any(found: Found, origin: str, tmp_path: Path) -> None:
    training = Training(engine_of("ddp", pretraining()), tmp_path).load(found.root / origin, 3)
    training.to(6).save().finish()
    wanted = found.one["losses"] if origin == "one" else found.results[origin]["losses"]
    assert training.losses == pytest.approx(wanted[3:], rel=LOSS_RTOL)
    compare = assert_equal if origin == "one" else assert_agree
    compare(state(tmp_path, 6), found.state(origin, 6))


@pytest.mark.parametrize(
    ("name", "learner"), [("zero", pretraining), ("zero-softmax", softmax), ("zero-distill", distillation)]
)
def test_slices_cover_everything(found: Found, name: str, learner: Callable[[], Learner]) -> None:
    own = learner()
    saved = found.state(name, 6)  # reading sets a checkpoint aside that has a gap
    assert set(saved) == whole(own)
    shapes = {n: tuple(p.shape) for n, p in [*own.named_parameters(), *own.named_buffers()]}
    assert all(tuple(value.shape) == shapes[key[1]] for key, value in saved.items())


@pytest.mark.parametrize("name", ["ddp", "zero", "zero-softmax", "zero-distill", "zero-zero"])
def test_the_whole_average_is_that_of_the_checkpoint(found: Found, name: str) -> None:
    teacher = found.results[name]["teacher"]
    saved = {key[1]: value for key, value in found.state(name, 6).items() if key[0] == "teacher"}
    assert teacher.keys() == saved.keys()
    assert all(torch.equal(teacher[key], saved[key]) for key in saved)
    assert all(value.dtype == torch.float32 for value in teacher.values())


def test_distillation_under_zero(found: Found) -> None:
    """The frozen mask token has no moments, but its average is exported like the others."""
    saved, start = found.state("zero-distill", 6), distillation()
    assert ("param", "student.backbone.mask_token") not in saved
    assert torch.equal(saved["teacher", "ema.backbone.mask_token"], start.student.backbone.mask_token)
    assert not torch.equal(saved["teacher", "ema.backbone.cls_token"], start.student.backbone.cls_token)
    assert_agree(saved, found.state("one-distill", 6))


def test_the_average_follows_the_masters(found: Found) -> None:
    """One step's rule on what was saved: teacher <- m teacher + (1 - m) student."""
    before, after = found.state("zero", 5), found.state("zero", 6)
    momentum = SCHEDULES.at(5).momentum
    for (kind, name), value in after.items():
        if kind == "teacher":
            student = after["param", name.replace("teacher.", "student.", 1)]
            wanted = momentum * before[kind, name] + (1 - momentum) * student
            torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)


def clipped(before: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Norms and gradients by torch's own function, module by module."""
    norms, after = {}, {}
    for module in dict.fromkeys(map(submodule, before)):
        own = {name: nn.Parameter(torch.empty_like(g)) for name, g in before.items() if submodule(name) == module}
        for name, parameter in own.items():
            parameter.grad = before[name].clone()
        norms[module] = nn.utils.clip_grad_norm_(own.values(), CLIP)
        after |= {name: parameter.grad for name, parameter in own.items()}
    return norms, after


def clip_of_ddp() -> dict[str, Any]:
    learner = pretraining()
    engine = engine_of("ddp", learner)
    loss, _ = engine.forward(*batch(0, 0, 1), 0.05, 0)
    engine.backward(loss)
    trained = {name: p for name, p in learner.named_parameters() if p.grad is not None}
    before = {name: p.grad.clone() for name, p in trained.items()}
    return {"before": before, "norms": engine.clip(CLIP), "after": {name: p.grad for name, p in trained.items()}}


@pytest.mark.parametrize("engine", ["ddp", "zero"])
def test_every_module_is_clipped_by_its_own_norm(found: Found, engine: str) -> None:
    done = found.results["clip"] if engine == "zero" else clip_of_ddp()
    norms, after = clipped(done["before"])
    assert set(norms) == {"student.backbone", "student.dino_head", "student.ibot_head"}
    assert min(norms.values()) > 0
    assert max(norms.values()) > CLIP, "something has to be clipped"
    torch.testing.assert_close(done["norms"], norms, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(done["after"], after, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_half_precision_trains_on_full_precision_masters(found: Found, engine: str) -> None:
    half = found.results[f"bf16-{engine}"]
    assert all(math.isfinite(loss) for loss in half["losses"])
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in half["state"].values())
    assert half["losses"] != found.results["zero"]["losses"][:3]
