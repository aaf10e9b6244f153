"""How well the order of training shuffles, beside a full permutation of the same samples.

    python tests/benchmarks/shuffle.py [--samples 2000000] [--batch 2048] [--runs 1 4 16 64]

Of each order, over two epochs:

* neighbours: share of a batch's samples that have a sample of the packed order within ``run`` places in the same batch;
* carried: share of samples whose follower in the packed order comes in the next batch: the price of runs;
* companions: pairs of a batch that are together again in the next epoch, over what chance would give;
* epochs: Kendall's tau between the places that samples have in both epochs (0: unrelated), over samples drawn at
  random;
* blocks: how evenly batches draw from 100 stretches of the packed order: variance of the counts over that of
  independent draws (1: as if drawn, below: more even).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))

from dinoctl.data.order import SampleOrder

Ids = NDArray[np.int64]
_BLOCKS, _DRAWN = 100, 4000


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 16, 64])
    given = parser.parse_args()
    steps = given.samples // given.batch
    print("| order | neighbours | carried | companions | epochs | blocks |\n|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    whole = [generator.permutation(given.samples)[: steps * given.batch] for _ in range(2)]
    _row("full permutation", *(epoch.reshape(steps, given.batch) for epoch in whole), given.samples, 16)
    for run in given.runs:
        order = SampleOrder(given.samples, given.batch, seed=0, run_length=run)
        first, second = (
            np.stack([order.batch(epoch * order.steps_per_epoch + step) for step in range(steps)]) for epoch in range(2)
        )
        _row(f"runs of {order.run_length}", first, second, given.samples, order.run_length)


def _row(name: str, first: Ids, second: Ids, samples: int, run: int) -> None:
    values = (
        _neighbours(first, max(run, 2)),
        _carried(first, samples),
        _companions(first, second, samples),
        _epochs(first, second, samples),
        _blocks(first, samples),
    )
    print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in values) + " |")


def _neighbours(batches: Ids, run: int) -> float:
    gaps = np.diff(np.sort(batches, axis=1), axis=1) < run
    near = np.zeros(batches.shape, bool)
    near[:, 1:] |= gaps
    near[:, :-1] |= gaps
    return float(near.mean())


def _carried(batches: Ids, samples: int) -> float:
    step = np.full(samples + 1, -2)
    step[batches] = np.arange(len(batches))[:, None]
    return float((step[batches[:-1] + 1] == np.arange(1, len(batches))[:, None]).mean())


def _companions(first: Ids, second: Ids, samples: int) -> float:
    """Pairs of a batch that meet again, over their expected number."""
    again = np.full(samples, -1)
    again[second] = np.arange(len(second))[:, None]
    met = pairs = 0
    for batch in first:
        places = again[batch]
        counts = np.bincount(places[places >= 0])
        met += int((counts * (counts - 1) // 2).sum())
        pairs += len(batch) * (len(batch) - 1) // 2
    return met / (pairs * (second.shape[1] - 1) / (samples - 1))


def _epochs(first: Ids, second: Ids, samples: int) -> float:
    places = np.full((2, samples), -1)
    for place, batches in zip(places, (first, second), strict=True):
        place[batches.ravel()] = np.arange(batches.size)
    both = np.flatnonzero((places >= 0).all(axis=0))
    drawn = np.random.default_rng(1).choice(both, min(_DRAWN, len(both)), replace=False)
    return float(kendalltau(places[0, drawn], places[1, drawn]).statistic)


def _blocks(batches: Ids, samples: int) -> float:
    counts = np.stack([np.bincount(batch * _BLOCKS // samples, minlength=_BLOCKS) for batch in batches])
    expected = batches.shape[1] / _BLOCKS * (1 - 1 / _BLOCKS)
    return float(counts.var(axis=0).mean() / expected)


if __name__ == "__main__":
    main()
