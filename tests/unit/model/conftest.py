import pytest
import torch

# The tensors are small: several threads cost more than they bring, and the machine may be shared.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)
