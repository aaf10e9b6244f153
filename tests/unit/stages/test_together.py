"""Several students of one teacher in real groups of processes, against each of them in a job of its own.

Everything that needs processes runs in one set of them per world size and is written to files; the tests compare.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dinoctl.data import pack as packing
from dinoctl.data.local import LocalStorage
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import Ledger
from dinoctl.handover.output import read_evidence, read_output
from dinoctl.model import ViTConfig, load_export, save_export
from dinoctl.spec.errors import UserError
from dinoctl.spec.load import load
from dinoctl.spec.recipe import Head, Heads
from dinoctl.spec.resolve import resolve
from dinoctl.stages import distill
from dinoctl.tracking.spool import history
from dinoctl.training.context import ProcessContext
from dinoctl.training.ledger import Checkpoint
from dinoctl.training.networks import build_network
from support.ranks import run_ranks

STEPS, BATCH = 5, 12
HEADS = Heads(dino=Head(prototypes=24, hidden=16, bottleneck=8), ibot=Head(prototypes=20, hidden=16, bottleneck=8))
DOCUMENT = """
apiVersion: dinoctl.io/v1alpha1
kind: DinoJob
metadata: {{name: job}}
spec:
  compute:
    {{workers: {workers}, gpusPerWorker: 0, loaderWorkers: 0, precision: {precision}, engine: {{name: {engine}}}}}
  distill:
    teacher: {{uri: {root}/teacher}}
    data: {{source: {root}/data}}
    teacherPlacement: {placement}
    {what}
    steps: 5
    globalBatch: {batch}
    crops: {{global: {{size: 16}}, local: {{count: 2, size: 8}}}}
    losses: {{centering: {centering}, koleo: {koleo}}}
    schedules: {{learningRate: {{warmupSteps: 1}}, freezeLastLayerSteps: 1}}
    logEvery: 1
  gate: {{dataset: {root}/data, trainSplit: few, min: 0, knn: {{imageSize: 16, k: [5]}}}}
  policy: {{checkpoint: {{everySteps: 2, keep: 9}}}}
"""
MODELS = {"a": "arch: custom, embedDim: 16, depth: 1, numHeads: 2, patchSize: 4",
          "b": "arch: custom, embedDim: 24, depth: 2, numHeads: 2, patchSize: 4, registers: 1"}  # fmt: skip


def alone(name: str) -> str:
    return f"model: {{{MODELS[name]}}}"


def both(a: int, b: int) -> str:
    return f"students: {{a: {{model: {{{MODELS['a']}}}, ranks: {a}}}, b: {{model: {{{MODELS['b']}}}, ranks: {b}}}}}"


USUAL = {
    "centering": "sinkhorn_knopp",
    "engine": "ddp",
    "precision": "fp32",
    "placement": "auto",
    "batch": BATCH,
    "koleo": 0.1,
}


def document(root: Path, name: str, what: str, workers: int, **settings: Any) -> Any:
    file = root / f"{name}.yaml"
    file.write_text(DOCUMENT.format(root=root, what=what, workers=workers, **{**USUAL, **settings}))
    (job,) = resolve(load([str(file)]))
    return job


def attempt_of(root: Path, name: str, job: Any, number: int = 1) -> Attempt:
    scratch = root / name / f"attempt-{number}"
    scratch.mkdir(parents=True, exist_ok=True)
    out, spool = str(root / name / "out"), root / name / "spool"
    return Attempt(name, job.spec, job.spec_hash, number, out, scratch, spool)


def runs_of(world: int) -> list[tuple[str, str, int, dict[str, Any]]]:
    """(name, what, workers, settings) of what is run in ``world`` processes."""
    if world == 1:
        return [
            ("a-1", alone("a"), 1, {}),
            ("b-1", alone("b"), 1, {}),
            ("b-1-soft", alone("b"), 1, {"centering": "softmax"}),
        ]
    if world == 2:
        return [
            ("b-2", alone("b"), 2, {}),
            ("ab-1-1", both(1, 1), 2, {}),
            ("ab-1-1-soft", both(1, 1), 2, {"centering": "softmax"}),
            ("resumed-2", both(1, 1), 2, {"from": "ab-1-1", "number": 2}),
        ]
    return [
        ("ab-1-2", both(1, 2), 3, {}),
        ("resumed-3", both(1, 2), 3, {"from": "ab-1-1", "number": 2}),
        *[(f"ab-1-2-{name}", both(1, 2), 3, settings) for name, settings in PLACED.items()],
    ]


PLACED: dict[str, dict[str, Any]] = {
    f"{placement}-{name}": {"engine": "fsdp", "placement": placement, **settings}
    for placement in ("sharded", "replicated")
    for name, settings in (("fp32", {}), ("few", {"precision": "bf16", "batch": 2, "koleo": 0}))
}


def processes(rank: int, world: int, root: Path) -> None:
    for name, what, workers, settings in runs_of(world):
        folder = root / name
        if rank == 0:
            own = {key: value for key, value in settings.items() if key in USUAL}
            job = document(root, name, what, workers, **own)
            if "from" in settings:
                copy_checkpoints(root / settings["from"], folder)
        dist.barrier()
        if rank > 0:
            (job,) = resolve(load([str(root / f"{name}.yaml")]))
        attempt = attempt_of(root, name, job, settings.get("number", 1))

        distill.run(attempt, ProcessContext(torch.device("cpu")))


def copy_checkpoints(source: Path, target: Path) -> None:
    """The checkpoint of step 2 alone: as if an attempt had been killed after it."""
    old, new = LocalStorage(source / "out"), LocalStorage(target / "out")
    for key in old.list("checkpoints/step-00000002/"):
        new.write(key, old.read(key))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    packing.pack("builtin://digits", str(root / "data"), splits={"val": 40, "few": 80}, verify=False)
    config = ViTConfig(embed_dim=32, depth=2, num_heads=2, patch_size=4, img_size=16)
    teacher = build_network(config, HEADS, generator=torch.Generator().manual_seed(9))
    assert teacher.ibot_head is not None
    heads = {"dino_head": teacher.dino_head.state_dict(), "ibot_head": teacher.ibot_head.state_dict()}
    save_export(root / "teacher", teacher.backbone, config, heads, {})
    for world in (1, 2, 3):
        run_ranks(processes, world, world, root)
    return root


def state(root: Path, name: str, step: int = STEPS, of: str = "") -> dict[tuple[str, str], Tensor]:
    """A checkpoint's tensors; ``of``: those of one of several students, under the names of one alone."""
    ledger = Ledger(LocalStorage(root / name / "out" / "checkpoints"))
    commit = ledger.commit(step)
    assert commit is not None, f"{name} has no step {step}, but {ledger.steps()}"
    checkpoint, start = Checkpoint(ledger.storage, commit), f"students.{of}." if of else ""
    kinds = ("param", "adam_m", "adam_v", "teacher", "buffer")
    return {
        (kind, key.removeprefix(start)): checkpoint.tensor(kind, key)
        for kind in kinds
        for key in checkpoint.names(kind)
        if key.startswith(start)
    }


def metrics(root: Path, name: str) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for key, points in history(root / name / "spool").items():
        for step, value in points:
            rows.setdefault(step, {})[key] = value
    return rows


PAIRS = [("ab-1-1", "a", "a-1"), ("ab-1-1", "b", "b-1"), ("ab-1-2", "a", "a-1"), ("ab-1-2", "b", "b-2"),
         ("ab-1-1-soft", "b", "b-1-soft")]  # fmt: skip


@pytest.mark.parametrize(("together", "student", "single"), PAIRS, ids=lambda value: str(value))
def test_a_student_learns_what_it_learns_alone(root: Path, together: str, student: str, single: str) -> None:
    """As many workers as in the job of its own, so the arithmetic is the same but for the teacher's batch: its rows are
    computed in other company, which changes their last bits.
    """
    wanted, found = state(root, single), state(root, together, of=student)
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(
            found[key], wanted[key], rtol=1e-4, atol=5e-6, msg=lambda text, k=key: f"{k}: {text}"
        )
    ours, theirs = metrics(root, together), metrics(root, single)
    assert sorted(ours) == sorted(theirs) == list(range(1, STEPS + 1))
    for step in theirs:
        for part in (
            "loss",
            "dino_global",
            "dino_local",
            "ibot",
            "koleo",
            "health/target_entropy",
            "grad_norm/student.backbone",
        ):
            assert ours[step][f"{student}/{part}"] == pytest.approx(theirs[step][part], rel=2e-5), (step, part)


@pytest.mark.parametrize("case", ["fp32", "few"])
@pytest.mark.parametrize("student", ["a", "b"])
def test_a_sharded_teacher_teaches_what_a_whole_one_does(root: Path, case: str, student: str) -> None:
    """Also where there are more ranks than images, so that one of them has nothing to ask. Against ddp only the losses
    without KoLeo are compared: rounding may give an image another nearest neighbour.
    """
    sharded, whole = (state(root, f"ab-1-2-{placement}-{case}", of=student) for placement in ("sharded", "replicated"))
    assert sharded.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(sharded[key], whole[key])] == []
    ours, theirs = (metrics(root, name) for name in (f"ab-1-2-sharded-{case}", "ab-1-2"))
    for step in ours if case == "fp32" else ():
        for part in (f"{student}/{loss}" for loss in ("dino_global", "dino_local", "ibot")):
            assert ours[step][part] == pytest.approx(theirs[step][part], rel=2e-5), (step, part)


def test_a_checkpoint_holds_all_students_and_no_teacher(root: Path) -> None:
    names = {key for _, key in state(root, "ab-1-2")}
    assert {".".join(name.split(".")[:3]) for name in names} == {
        f"students.{student}.{role}" for student in "ab" for role in ("student", "ema")
    }


@pytest.mark.parametrize(("name", "wanted"), [("resumed-2", "ab-1-1"), ("resumed-3", "ab-1-2")])
def test_resuming_is_exact_and_takes_another_division(root: Path, name: str, wanted: str) -> None:
    """From step 2 of one worker each. The same division: to the bit. Another one: as training there from the start,
    where KoLeo, which looks at one worker's images, lets only student a, with one worker before and after, agree.
    """
    assert Ledger(LocalStorage(root / name / "out" / "checkpoints")).steps()[0] == 2
    for student in "ab":
        before, after = state(root, wanted, of=student), state(root, name, of=student)
        assert before.keys() == after.keys()
        if name == "resumed-2":
            assert all(torch.equal(before[key], after[key]) for key in before), student
    if name == "resumed-3":
        before, after = state(root, wanted, of="a"), state(root, name, of="a")
        for key in before:
            torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=5e-6)


def test_every_student_is_exported_and_measured(root: Path) -> None:
    out = LocalStorage(root / "ab-1-2" / "out")
    evidence, output = read_evidence(out), read_output(out)
    assert evidence is not None
    assert output is not None
    assert set(evidence.parts) == {"a", "b"}
    assert {f"{name}/{kind}knn_top1" for name in "ab" for kind in ("", "random_")} <= set(evidence.metrics)
    assert output.content_hash == evidence.checkpoint_hash
    assert output.summary["knn_top1"] == min(evidence.metrics[f"{name}/knn_top1"] for name in "ab")
    for name, width in (("a", 16), ("b", 24)):
        exported = load_export(root / "ab-1-2" / "out" / "export" / name)
        assert exported.config.embed_dim == width
        assert exported.metadata["student"] == name
        assert set(exported.heads) == {"dino_head", "ibot_head"}
        averages = state(root, "ab-1-2", of=name)
        assert torch.equal(exported.backbone.cls_token, averages["teacher", "ema.backbone.cls_token"])
        single = read_evidence(LocalStorage(root / {"a": "a-1", "b": "b-2"}[name] / "out"))
        assert single is not None
        assert evidence.of(name).metrics["random_knn_top1"] == single.metrics["random_knn_top1"]


def test_workers_that_are_not_those_of_the_document(root: Path, tmp_path: Path) -> None:
    job = document(root, "wrong", both(1, 2), 3)
    with pytest.raises(UserError, match=r"ranks \(a 1, b 2\) are 3, but there are 1 workers"):
        distill.run(attempt_of(tmp_path, "wrong", job), ProcessContext(torch.device("cpu")))


def test_unequal_prototypes_are_told_with_numbers(root: Path, tmp_path: Path) -> None:
    job = document(root, "heads", both(1, 2), 3)
    students = dict(job.spec.distill.students)
    heads = Heads(dino=Head(prototypes=32, hidden=16, bottleneck=8), ibot=HEADS.ibot)
    students["a"] = students["a"].model_copy(update={"heads": heads})
    stage = job.spec.distill.model_copy(update={"students": students})
    from dinoctl.stages.models import open_model
    from dinoctl.stages.together import learner_of
    from dinoctl.training.networks import HeadPair

    teacher = open_model(stage.teacher, None)
    network = teacher.network()
    attempt = attempt_of(tmp_path, "heads", replace(job, spec=job.spec))
    with pytest.raises(UserError, match="student has 32 DINO and 20 iBOT prototypes, the teacher 24 and 20"):
        learner_of(attempt, stage.of("a"), teacher, HeadPair(network.dino_head, network.ibot_head))
