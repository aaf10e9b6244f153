"""What reading training data from a bucket will take: requests, bytes and their price, before the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dinoctl.data.order import fitting_run


class Cost(NamedTuple):
    """Of a whole job, without hedges, retries and what a disk cache saves."""

    requests: int
    bytes: int
    price: float
    """Of the requests, in the currency of the price given."""

    def __str__(self) -> str:
        return f"{self.requests:,} GET requests, {self.bytes / 1e9:,.1f} GB, requests {self.price:,.2f} USD"


def estimate(
    parts: Sequence[tuple[int, float, float]],
    *,
    steps: int,
    global_batch: int,
    run_length: int,
    most_bytes: float,
    price_per_thousand: float,
) -> Cost:
    """Cost of ``steps`` batches.

    Args:
        parts: of a mixture, all of them: samples, weight, mean bytes of an image (0 for a local part).
        steps: of the job.
        global_batch: samples of a step.
        run_length: neighbouring samples that a lane takes, as the document says.
        most_bytes: of one request, at most (see `Reader`).
        price_per_thousand: of 1,000 GET requests.
    """
    run = fitting_run(sum(samples for samples, _, _ in parts), global_batch, run_length)
    weights = sum(weight for _, weight, _ in parts)
    requests = size = 0.0
    for samples, weight, mean in parts:
        if mean <= 0:
            continue
        read = steps * global_batch * (weight / weights)
        # What fills no whole round of runs comes sample by sample at an epoch's end; a mixture has no rounds.
        lanes = global_batch if len(parts) == 1 else 1
        single = samples % (run * lanes) / samples
        fitting = max(1, min(run, int(most_bytes / mean)))
        requests += read * (single + (1 - single) * -(-run // fitting) / run)
        size += read * mean
    return Cost(round(requests), round(size), requests / 1000 * price_per_thousand)
