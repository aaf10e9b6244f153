"""Worlds of 1, 2, 3, 4 and 8 ranks, every engine, on a bucket: any of them reads what any other wrote, bit by bit, and
trains on.

Each of the 25 pairs (engine, world) writes a checkpoint and resumes from another one, chosen so that every pair of
worlds, every pair of engines, and every engine with every world, on either side, occurs exactly once (`RESUMES`). The
pieces of a checkpoint depend on who wrote it, and reading is arithmetic on pieces alone; that is tested for all
intervals in tests/unit/training/test_training_ledger. (Five steps of training and all pairs of engines on 1, 2 and 3
ranks, on a directory: test_engines_agree.)
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_engines import CLIP, SCHEDULES, State, Training, assert_agree, assert_equal, batch, pretraining
from test_engines_agree import ENGINES, engine_of

from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.engines.base import Engine
from dinoctl.training.groups import apply
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity
from support.ranks import run_ranks

pytestmark = pytest.mark.timeout(900)

WORLDS = (1, 2, 3, 4, 8)
EVEN = (1, 2, 4, 8)  # ranks among which a batch of eight divides
IMAGES = 8
KINDS = ("param", "adam_m", "adam_v", "teacher", "buffer")


class Resume(NamedTuple):
    """``engine`` on ``world`` ranks goes on from what ``origin`` wrote on ``origin_world``."""

    origin: str
    origin_world: int
    engine: str
    world: int

    @property
    def source(self) -> str:
        return f"{self.origin}-{self.origin_world}"

    @property
    def target(self) -> str:
        return f"{self.engine}-{self.world}-of-{self.source}"


# Rows of an orthogonal array: of any two columns, every pair of values once, because 1 and 2 are no multiples of 5.
RESUMES = [
    Resume(ENGINES[j], WORLDS[i], ENGINES[(i + 2 * j) % 5], WORLDS[(i + j) % 5]) for i, j in product(range(5), repeat=2)
]


def save(engine: Engine, uri: str, step: int) -> None:
    identity = WriterIdentity(1, engine.rank, engine.world, "", "", 0, {})
    writer = LedgerWriter(Ledger(open_storage(uri)), identity, keep=9)
    writer.save(step, engine.slices())
    writer.wait()
    writer.close()


def opened(uri: str, step: int) -> Checkpoint:
    ledger = Ledger(open_storage(uri))
    commit = ledger.commit(step)
    assert commit is not None, uri
    return Checkpoint(ledger.storage, commit)


def load(engine: Engine, uri: str) -> None:
    """As a stage does it: fetched ahead."""
    checkpoint = opened(uri, 1)
    checkpoint.read_ahead(engine.slices())
    engine.load(checkpoint.read, 1)
    checkpoint.close()


def state(uri: str, step: int) -> State:
    checkpoint = opened(uri, step)
    return {(k, n): t for k in KINDS for n, t in checkpoint.tensors(k, checkpoint.names(k)).items()}


def train_on(engine: Engine) -> None:
    """The second step."""
    values = SCHEDULES.at(1)
    apply(engine.groups, values)
    loss, _ = engine.forward(*batch(1, engine.rank, engine.world, IMAGES), values.teacher_temperature, 1)
    engine.backward(loss)
    engine.clip(CLIP)
    engine.step()
    engine.average(values.momentum)


def write_all(rank: int, bucket: str) -> None:
    for name in ENGINES:
        load(engine := engine_of(name, pretraining()), f"{bucket}/one")
        save(engine, f"{bucket}/{name}-{engine.world}", 1)


def resume_all(rank: int, bucket: str, world: int) -> None:
    for case in [case for case in RESUMES if case.world == world]:
        load(engine := engine_of(case.engine, pretraining()), f"{bucket}/{case.source}")
        save(engine, f"{bucket}/{case.target}", 1)
        if world in EVEN:
            train_on(engine)
            save(engine, f"{bucket}/{case.target}", 2)


def test_the_chosen_resumes_are_all_pairs() -> None:
    for one, other in (
        ("origin_world", "world"),
        ("origin", "engine"),
        ("origin", "origin_world"),
        ("engine", "world"),
    ):
        found = {(getattr(case, one), getattr(case, other)) for case in RESUMES}
        assert len(found) == len(RESUMES) == 25, (one, other)


def test_any_world_and_engine_goes_on_from_any_other(s3: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one = Training(engine_of("ddp", pretraining()), tmp_path / "unused").to(1)
    save(one.engine, f"{s3}/one", 1)
    train_on(one.engine)
    save(one.engine, f"{s3}/one", 2)
    wanted, after = state(f"{s3}/one", 1), state(f"{s3}/one", 2)
    assert any(tensor.abs().max() > 0 for (kind, _), tensor in wanted.items() if kind == "adam_m")
    for world in WORLDS:
        run_ranks(write_all, world, s3)
    for world in WORLDS:
        run_ranks(resume_all, world, s3, world)
    for case in RESUMES:
        assert opened(f"{s3}/{case.source}", 1).commit.world == case.origin_world
        assert opened(f"{s3}/{case.target}", 1).commit.world == case.world
        assert_equal(state(f"{s3}/{case.target}", 1), wanted)
        if case.world in EVEN:
            assert_agree(state(f"{s3}/{case.target}", 2), after)
