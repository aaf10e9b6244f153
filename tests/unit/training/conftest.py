from pathlib import Path

import pytest
import torch

from dinoctl.data.local import LocalStorage
from dinoctl.handover.ledger import Ledger
from support.fixtures import s3, s3_faults, s3_server  # noqa: F401

# The tensors are small: several threads cost more than they bring, and the machine may be shared.
torch.set_num_threads(1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(LocalStorage(tmp_path / "checkpoints"))
