"""Going on from the last checkpoint: which one it is, for all ranks, and whether it may be gone on from."""

import torch
import torch.distributed as dist

from dinoctl.data.errors import StorageError
from dinoctl.handover.attempt import Attempt
from dinoctl.handover.ledger import Commit, Ledger
from dinoctl.spec.errors import UserError
from dinoctl.training.context import Context
from dinoctl.training.engines.base import Engine
from dinoctl.training.ledger import Checkpoint


def resume(
    attempt: Attempt, context: Context, ledger: Ledger, engine: Engine, data_hash: str, *, names: str = ""
) -> Commit | None:
    """The checkpoint whose state the engine has now, None where nothing is done yet; ``names`` goes before the names of
    its tensors in the checkpoint. Raises UserError where the steps were done on other data. Collective.
    """
    if context.rank == 0:
        ledger.begin(attempt.number)
        ledger.collect_orphans(attempt.number)
    head = agreed_head(attempt, context, ledger)
    if head is None:
        return None
    check_same_data(attempt, head, data_hash)
    checkpoint = Checkpoint(ledger.storage, head)
    checkpoint.read_ahead([piece.under(names) for piece in engine.slices()])
    try:
        engine.load(lambda piece: checkpoint.read(piece.under(names)), head.step - head.skipped)
    finally:
        checkpoint.close()
    return head


def agreed_head(attempt: Attempt, context: Context, ledger: Ledger) -> Commit | None:
    """Rank 0's answer for all: a replaced attempt may still be committing while the ranks look."""
    head = ledger.head(attempt.spec_hash) if context.rank == 0 else None
    if context.world == 1:
        return head
    step = torch.tensor(head.step if head else -1, device=context.device)
    dist.broadcast(step, src=0)
    found = int(step.item())
    if context.rank == 0 or found < 0:
        return head
    commit = ledger.commit(found)
    if commit is None:
        raise StorageError(f"rank {context.rank} does not see the checkpoint of step {found} in {ledger.storage.uri}")
    return commit


def check_same_data(attempt: Attempt, head: Commit, data_hash: str) -> None:
    """Raises UserError where a checkpoint's steps were done on other data than is there now."""
    if head.data_hash not in ("", data_hash):
        raise UserError(
            f"the {head.step} steps of {attempt.name} so far were done on training data that has since been packed "
            f"again or replaced; put the old data back, or start over with --restart {attempt.name}"
        )
