"""Four ranks and one, every engine, on a bucket: what one world writes the other one reads, whole and bit by bit.

(Worlds of 1, 2 and 3 and all pairs of engines, on a directory: test_engines_agree; all pairs of worlds up to 8, without
engines: tests/unit/training/test_training_ledger.)
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_engines import State, Training, assert_equal, pretraining
from test_engines_agree import ENGINES, engine_of
from torch.multiprocessing.spawn import spawn

from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from dinoctl.training.engines.base import Engine
from dinoctl.training.ledger import Checkpoint, LedgerWriter, WriterIdentity

pytestmark = pytest.mark.timeout(900)

WORLD = 4
KINDS = ("param", "adam_m", "adam_v", "teacher", "buffer")


def save(engine: Engine, uri: str) -> None:
    writer = LedgerWriter(
        Ledger(open_storage(uri)), WriterIdentity(1, engine.rank, engine.world, "", "", 0, {}), keep=9
    )
    writer.save(1, engine.slices())
    writer.wait()
    writer.close()


def load(engine: Engine, uri: str) -> None:
    """As a stage does it: fetched ahead."""
    ledger = Ledger(open_storage(uri))
    commit = ledger.commit(1)
    assert commit is not None, uri
    checkpoint = Checkpoint(ledger.storage, commit)
    checkpoint.read_ahead(engine.slices())
    engine.load(checkpoint.read, 1)
    checkpoint.close()


def state(uri: str) -> State:
    ledger = Ledger(open_storage(uri))
    commit = ledger.commit(1)
    assert commit is not None, uri
    checkpoint = Checkpoint(ledger.storage, commit)
    return {(k, n): t for k in KINDS for n, t in checkpoint.tensors(k, checkpoint.names(k)).items()}


def four(rank: int, bucket: str, root: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{root}/store", world_size=WORLD, rank=rank)
    for name in ENGINES:
        load(again := engine_of(name, pretraining()), f"{bucket}/one")
        save(again, f"{bucket}/{name}-of-one")
    for name, other in zip(ENGINES, ENGINES[1:] + ENGINES[:1], strict=True):
        load(again := engine_of(name, pretraining()), f"{bucket}/{other}-of-one")
        save(again, f"{bucket}/{name}-of-{other}")
    dist.barrier()
    dist.destroy_process_group()


def test_every_engine_on_four_ranks_and_on_one(s3: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one = Training(engine_of("ddp", pretraining()), tmp_path / "unused").to(1)
    save(one.engine, f"{s3}/one")
    wanted = state(f"{s3}/one")
    assert any(tensor.abs().max() > 0 for (kind, _), tensor in wanted.items() if kind == "adam_m")
    spawn(four, args=(s3, tmp_path), nprocs=WORLD)
    for name, other in zip(ENGINES, ENGINES[1:] + ENGINES[:1], strict=True):
        for written in (f"{name}-of-one", f"{name}-of-{other}"):
            commit = Ledger(open_storage(f"{s3}/{written}")).commit(1)
            assert commit is not None
            assert commit.world == WORLD
            assert_equal(state(f"{s3}/{written}"), wanted)
        load(again := engine_of("ddp", pretraining()), f"{s3}/{name}-of-{other}")
        save(again, f"{s3}/one-of-{name}")
        assert_equal(state(f"{s3}/one-of-{name}"), wanted)
