from pathlib import Path

import pytest
import torch

from dinoctl.data.storage import open_storage
from dinoctl.handover.ledger import Ledger
from support.fixtures import s3, s3_faults, s3_server  # noqa: F401

# The tensors are small: several threads cost more than they bring, and the machine may be shared.
torch.set_num_threads(1)


@pytest.fixture(params=["directory", "bucket"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "directory":
        return Ledger(open_storage(tmp_path / "checkpoints"))
    return Ledger(open_storage(f"{request.getfixturevalue('s3')}/job/checkpoints"))
