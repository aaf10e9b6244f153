"""One pass of a frozen teacher for several students: each image once in the world, the tokens sent to who needs them.

Sent are normalised class tokens and masked patch tokens of the backbone, not logits, which are up to a hundred times
wider; every rank puts the teacher's heads on those of its own images. Both sides of a message know the masks of its
images, so sizes need no message of their own, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from dinoctl.model import Read, VisionTransformer
from dinoctl.training.seating import Seating


@dataclass(frozen=True)
class _Mail:
    """Rows in the order in which they are sent to, or come from, each rank: (images of rank 0, of rank 1, ...)."""

    rows: Tensor
    """(n,) int64, rows of the own crops (2 B), both crops of an image one after the other."""
    counts: list[int]
    """Rows of each other rank."""


class SharedTeacher:
    """Calls of all ranks together give every rank the teacher's tokens of its own images. ``dtype`` is what the
    backbone computes in; one that is ``sharded`` is called by every rank, also by those with nothing to ask.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        seating: Seating,
        rank: int,
        *,
        dtype: torch.dtype = torch.float32,
        sharded: bool = False,
    ) -> None:
        self._dtype, self._sharded = dtype, sharded
        self.backbone = backbone.requires_grad_(False).eval()
        backbone.fuse()
        lanes = list(seating.lanes(rank))
        self._images = len(lanes)
        asked = [place for place, lane in enumerate(lanes) if seating.asks[lane] == rank]
        self._asked = torch.tensor(asked, dtype=torch.int64)
        place = {lane: index for index, lane in enumerate(lanes)}
        out, back = [], []
        for other in range(seating.world):
            theirs = seating.lanes(other)
            out.append([place[lane] for lane in theirs if lane in place and seating.asks[lane] == rank])
            back.append([place[lane] for lane in theirs if lane in place and seating.asks[lane] == other])
        # A rank's own lanes are listed for itself in both directions: nothing is a special case.
        self._out, self._back = self._mail(out), self._mail(back)

    def _mail(self, places: list[list[int]]) -> _Mail:
        rows = [crop * self._images + place for own in places for place in own for crop in range(2)]
        return _Mail(torch.tensor(rows, dtype=torch.int64), [2 * len(own) for own in places])

    @torch.no_grad()
    def __call__(self, crops: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens (2 B, D) and masked patch tokens (M, D) of this rank's B images, in the order of its crops.

        ``crops`` (2 B, 3, H, W) float on the device, crop-major; ``masks`` (2 B, N) bool *on the host*. Collective.
        """
        width, device = self.backbone.config.embed_dim, crops.device
        asked = torch.cat([self._asked, self._asked + self._images])  # rows of the own crops
        among = torch.full((2 * self._images,), -1, dtype=torch.int64)  # such a row's place in what is asked about
        among[asked] = torch.arange(len(asked))
        classes, tokens = self._ask(crops[asked.to(device)], masks[asked])
        counts, sent = masks.sum(1), among[self._out.rows]

        own_classes = classes.new_empty(2 * self._images, width)
        arrived = _exchange(classes[sent.to(device)], self._out.counts, self._back.counts)
        own_classes[self._back.rows.to(device)] = arrived

        chosen = tokens[_places(counts[asked], sent).to(device)]
        arrived = _exchange(chosen, _tokens(self._out, counts), _tokens(self._back, counts))
        own_tokens = arrived.new_empty(len(arrived), width)
        own_tokens[_places(counts, self._back.rows).to(device)] = arrived
        return own_classes, own_tokens

    def _ask(self, crops: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's class tokens (R, D) and masked patch tokens (M, D) of the R crops that this rank asks about."""
        if not len(crops):  # more ranks than images
            if self._sharded:
                self._ask(crops.new_zeros(1, *crops.shape[1:]), masks.new_zeros(1, *masks.shape[1:]))
            none = crops.new_empty(0, self.backbone.config.embed_dim, dtype=self._dtype)
            return none, none
        wanted = masks.flatten().nonzero().flatten().to(crops.device)
        (read,) = cast(list[Read], self.backbone([crops.to(self._dtype)], wanted=[wanted]))
        return read.classes, read.patches


def _tokens(mail: _Mail, counts: Tensor) -> list[int]:
    """Masked tokens of each other rank."""
    return [int(part.sum()) for part in torch.split(counts[mail.rows], mail.counts)]


def _places(counts: Tensor, rows: Tensor) -> Tensor:
    """Where the masked tokens of ``rows``, one row after the other, belong among those of all rows in order."""
    starts, lengths = (counts.cumsum(0) - counts)[rows], counts[rows]
    within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(starts, lengths) + within


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Rows (sum(sent), D) to all ranks, and theirs (sum(received), D) in the order of ranks."""
    if len(sent) == 1:
        return rows
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent)
    return arrived
