"""A step that is not finite on one of two ranks is skipped on both, by ddp, ZeRO-3 and FSDP2: the state
is bit by bit that of a run which never made that step. A streak ends the run on both ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engines import CLIP, IMAGES, SCHEDULES, Training, batch, engine_of, pretraining, state

from dinoctl.data.batch import Batch
from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.context import ProcessContext
from dinoctl.training.culprit import Culprit
from dinoctl.training.ledger import LedgerWriter, WriterIdentity
from dinoctl.training.loop import DivergedError, Loop, LoopSettings
from dinoctl.training.vitals import Vitals
from support.ranks import run_ranks

WORLD, STEPS, BROKEN = 2, 6, 3
ENGINES = ("ddp", "deepspeed", "fsdp")
RANK = "health/effective_rank_student"


def batches(rank: int, broken: set[int]) -> Iterator[Batch]:
    """Those of ``broken`` steps have an infinite pixel on rank 1."""
    for step in range(STEPS):
        crops, *others = batch(step, rank, WORLD)
        if rank == 1 and step in broken:
            crops[0, 0, 0, 0] = math.inf
        yield Batch(step, torch.arange(IMAGES // WORLD), crops, *others)


def looped(engine: str, rank: int, folder: Path, broken: set[int]) -> list[dict[str, float]]:
    recorded: list[dict[str, float]] = []
    writer = LedgerWriter(Ledger(LocalStorage(folder)), WriterIdentity(1, rank, WORLD, "spec", "run", 0, {}), keep=9)
    learner = pretraining()
    made = engine_of(engine, learner)
    inputs = attrgetter("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
    culprit = Culprit(
        learner,
        made,
        SCHEDULES,
        inputs=inputs,
        again=lambda step: next(islice(batches(rank, broken), step, None)),
        clip_norm=CLIP,
        seed=0,
    )
    loop = Loop(
        ProcessContext(torch.device("cpu")),
        made,
        SCHEDULES,
        writer,
        LoopSettings(STEPS, IMAGES, checkpoint_every=6, log_every=2, clip_norm=CLIP, seed=0),
        inputs=inputs,
        record=lambda _, metrics: recorded.append(metrics),
        vitals=Vitals(learner, every=4, after=0, images=IMAGES),
        explain=culprit.explain,
    )
    try:
        loop.run(batches(rank, broken), 0)
    finally:
        writer.close()
    return recorded


def omitted(engine: str, folder: Path) -> None:
    """The same steps but for the broken one."""
    training = Training(engine_of(engine, pretraining()), folder)
    training.to(BROKEN)
    training.done = BROKEN + 1
    training.to(STEPS).save().finish()


def two_processes(rank: int, root: Path) -> None:
    found: dict[str, Any] = {}
    for engine in ENGINES:
        omitted(engine, root / f"{engine}-omitted")
        found[engine] = looped(engine, rank, root / engine, {BROKEN})
        try:
            looped(engine, rank, root / f"{engine}-streak", {1, 2, 3})
        except DivergedError as error:
            found[f"{engine}-error"] = str(error)
    torch.save(found, root / f"found-{rank}.pt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("skipped")
    run_ranks(two_processes, WORLD, path)
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_broken_on_one_rank_leaves_no_trace_on_any(root: Path, engine: str) -> None:
    found, wanted = state(root / engine, STEPS), state(root / f"{engine}-omitted", STEPS)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    assert all(value.isfinite().all() for value in found.values())
    points = torch.load(root / "found-0.pt")[engine]
    assert [point["health/skipped_steps"] for point in points] == [0, 0, 1, 1]
    assert all(math.isfinite(value) for point in points for value in point.values())
    assert [step for step, point in zip((1, 2, 4, 6), points, strict=True) if RANK in point] == [4]
    assert 1 < points[2][RANK] <= 2 * IMAGES


@pytest.mark.parametrize("engine", ENGINES)
def test_a_streak_ends_the_run_on_all_ranks(root: Path, engine: str) -> None:
    errors = [torch.load(root / f"found-{rank}.pt")[f"{engine}-error"] for rank in range(WORLD)]
    assert errors[0] == errors[1]
    assert errors[0].startswith("3 steps in a row had a loss or gradients that are not finite")
    assert (
        "the first of them step 1 (the first that is not finite: module teacher.backbone.patch_embed.proj (forward; "
        "the crops themselves are not finite) on rank 1; samples 0); they were skipped"
    ) in errors[0]
    assert Ledger(LocalStorage(root / f"{engine}-streak")).steps() == []
