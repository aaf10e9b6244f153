"""A frozen network that no engine trains, such as the teacher that several students share."""

import torch
from torch import nn

from dinoctl.training.engines.fill import Roster, blank, fill, replace
from dinoctl.training.weights import Tensors


def place_frozen(
    network: nn.Module,
    tensors: Tensors,
    *,
    whole: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fills shapes from ``tensors``, one by one: every rank has all of them, or with ``whole`` False FSDP shards them
    over all ranks, which then have to call the network together. Raises ValueError as `fill` does.
    """
    roster = Roster.of(network)
    network.requires_grad_(False)
    blank(network, device)
    if whole:
        fill(roster, tensors, lambda name, tensor: _copy(network, name, tensor.to(device, dtype, copy=True)))
        return
    from dinoctl.training.engines import fsdp
    from dinoctl.training.engines.held import world_of

    rank, world = world_of(None)
    fsdp.shard(network.to(dtype), dtype, device, None)
    parameters = dict(network.named_parameters())

    @torch.no_grad()
    def place(name: str, tensor: torch.Tensor) -> None:
        start, end = fsdp.rows_of(tensor.shape[0], rank, world)
        fsdp.local(parameters[name]).copy_(tensor[start:end])

    fill(roster, tensors, place)


def _copy(network: nn.Module, name: str, tensor: torch.Tensor) -> None:
    replace(network, name, tensor.contiguous())
