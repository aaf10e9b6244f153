import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoctl.data.errors import DataError
from dinoctl.data.feistel import permute, round_keys
from dinoctl.data.mixture import SLOTS, STEPS, MixtureOrder, quotas
from dinoctl.data.order import SampleOrder, lanes_of

sizes = st.integers(1, 500)
batches = st.integers(1, 200)
seeds = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(st.integers(1, 5000), seeds)
def test_feistel_is_a_permutation(size: int, seed: int) -> None:
    image = permute(np.arange(size), size, round_keys(seed, "test"))
    assert (np.sort(image) == np.arange(size)).all()


def test_feistel_looks_random() -> None:
    size = 10_007
    image = permute(np.arange(size), size, round_keys(1, "test"))
    ranks = np.corrcoef(np.arange(size), image)[0, 1]
    neighbours = np.corrcoef(image[:-1], image[1:])[0, 1]
    assert abs(ranks) < 0.03
    assert abs(neighbours) < 0.03
    # Distances of neighbours in a random permutation are size / 3 on average.
    assert np.abs(np.diff(image)).mean() == pytest.approx(size / 3, rel=0.03)


@settings(max_examples=150, deadline=None)
@given(sizes, batches, seeds, st.integers(1, 40))
def test_each_epoch_covers_every_sample_once(samples: int, batch: int, seed: int, run: int) -> None:
    order = SampleOrder(samples, batch, seed, run)
    steps = -(-3 * samples // batch)
    stream = np.concatenate([order.batch(step) for step in range(steps)])
    for epoch in range(3):
        ids = stream[epoch * samples : (epoch + 1) * samples]
        assert (np.sort(ids) == np.arange(samples)).all()


@settings(deadline=None)
@given(sizes, st.integers(8, 200), seeds, st.integers(0, 10**6), st.integers(1, 8))
def test_any_number_of_ranks_gets_the_same_batch(samples: int, batch: int, seed: int, step: int, world: int) -> None:
    order = SampleOrder(samples, batch, seed)
    whole = np.empty(batch, dtype=np.int64)
    for rank in range(world):
        whole[rank::world] = order.lanes(step, rank, world)
    assert (whole == SampleOrder(samples, batch, seed).batch(step)).all()


def test_epochs_seeds_and_steps_differ() -> None:
    order = SampleOrder(1297, 64, 0)
    assert order.steps_per_epoch == 21
    assert [order.epoch_of(step) for step in (0, 20, 21, 41)] == [0, 0, 1, 2]
    picks = order.picks(20, lanes_of(64, 0, 1))
    assert picks.epoch.tolist() == [0] * 17 + [1] * 47
    assert (order.batch(0) != order.batch(1)).any()
    assert (order.batch(0) != SampleOrder(1297, 64, 1).batch(0)).any()


def test_lanes_read_runs_and_batches_mix_them() -> None:
    order = SampleOrder(1_000_000, 256, 3)
    assert order.run_length == 16
    ids = np.stack([order.batch(step) for step in range(64)])
    consecutive = (np.diff(ids, axis=0) == 1).mean()
    assert consecutive == pytest.approx(15 / 16, abs=0.02)
    starts = (np.diff(ids, axis=0) != 1).mean(axis=1)
    assert starts.max() < 0.1, "requests come in bursts"
    runs = [len({int(i) // 16 for i in batch}) for batch in ids]
    assert min(runs) > 250  # 256 lanes; cut places differ from multiples of 16, so a few may look alike


@pytest.mark.parametrize(
    "order", [SampleOrder(1000, 8, 5), MixtureOrder([(300, 1.0), (500, 2.0)], 8, 5, homogeneous=0.2)]
)
def test_many_steps_at_once_are_the_same_as_one_by_one(order: SampleOrder | MixtureOrder) -> None:
    lanes = lanes_of(8, 1, 3)
    block = order.block(90, 200, lanes)
    for i in range(200):
        for together, alone in zip(block, order.picks(90 + i, lanes), strict=True):
            assert (together[i] == alone).all()
    assert len(np.unique(block.epoch)) > 1


def test_small_data_is_fully_shuffled() -> None:
    assert SampleOrder(1297, 64, 0).run_length == 1
    assert SampleOrder(16 * 64 * 4, 64, 0).run_length == 4


def test_large_data_costs_no_memory() -> None:
    order = SampleOrder(10**9, 3072, 0)
    assert len(set(order.batch(10**7).tolist())) == 3072


def test_refusals() -> None:
    with pytest.raises(DataError, match="must be at least 1"):
        SampleOrder(0, 8, 0)
    with pytest.raises(DataError, match="globalBatch 2 is smaller than the number of workers 3"):
        SampleOrder(10, 2, 0).lanes(0, 0, 3)
    with pytest.raises(DataError, match="open the same dataset"):
        SampleOrder(10, 2, 0).check([11])
    with pytest.raises(DataError, match="at least 1/16384"):
        MixtureOrder([(10, 1.0), (10, 1e-9)], 4, 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 5)), min_size=1, max_size=4), st.integers(1, 64), seeds)
def test_mixture_covers_every_source_and_meets_the_weights(
    sources: list[tuple[int, float]], batch: int, seed: int
) -> None:
    order = MixtureOrder(sources, batch, seed, run_length=4)
    steps = -(-SLOTS * order.run_length // batch) + order.run_length
    drawn = [order.picks(step, lanes_of(batch, 0, 1)) for step in range(min(steps, 200))]
    source = np.concatenate([picks.source for picks in drawn])
    total = sum(weight for _, weight in sources)
    for number, (samples, weight) in enumerate(sources):
        share = (source == number).mean()
        assert share == pytest.approx(weight / total, abs=3 / np.sqrt(len(source) / order.run_length) + 0.01)
        ids = np.concatenate([picks.sample[picks.source == number] for picks in drawn])
        assert ids.size == 0 or ids.max() < samples


def test_mixture_streams_are_exact_over_a_period() -> None:
    batch, run = 64, 4
    order = MixtureOrder([(1000, 3.0), (7000, 1.0)], batch, 5, run_length=run)
    run = order.run_length
    steps = SLOTS * run // batch
    drawn = [order.picks(step, lanes_of(batch, 0, 1)) for step in range(steps)]
    source, sample, epoch = (np.concatenate([picks[i] for picks in drawn]) for i in range(3))
    assert [(source == i).sum() for i in range(2)] == [SLOTS * run * 3 // 4, SLOTS * run // 4]
    for number, samples in enumerate(order.sources):
        mine = source == number
        whole = int(mine.sum()) // samples
        for e in range(whole):
            assert (np.sort(sample[mine & (epoch == e)]) == np.arange(samples)).all()


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 5000), st.integers(1, 5))
def test_mixture_is_free_of_the_world_size(seed: int, step: int, world: int) -> None:
    order = MixtureOrder([(100, 2.0), (50, 1.0), (7, 0.5)], 16, seed, homogeneous=0.3)
    source, sample = order.batch(step)
    for rank in range(world):
        mine = order.lanes(step, rank, world)
        assert (mine[0] == source[rank::world]).all()
        assert (mine[1] == sample[rank::world]).all()


def test_homogeneous_batches() -> None:
    order = MixtureOrder([(500, 2.0), (300, 1.0)], 32, 7, homogeneous=0.25)
    batches = [order.picks(step, lanes_of(32, 0, 1)) for step in range(2 * STEPS)]
    pure = [picks for picks in batches if len(set(picks.source.tolist())) == 1]
    assert len(pure) == pytest.approx(STEPS / 2, abs=2)
    share = np.mean([picks.source[0] == 0 for picks in pure])
    assert share == pytest.approx(2 / 3, abs=0.06)
    first = np.concatenate([picks.sample for picks in pure if picks.source[0] == 1])[:300]
    assert (np.sort(first) == np.arange(300)).all()


def test_all_homogeneous_and_one_source() -> None:
    order = MixtureOrder([(10, 1.0)], 4, 0, homogeneous=1.0)
    ids = np.concatenate([order.batch(step)[1] for step in range(5)])
    assert (np.sort(ids.reshape(2, 10), axis=1) == np.arange(10)).all()
    assert quotas(np.array([1.0, 1.0, 1.0]), 10) == [4, 3, 3]
