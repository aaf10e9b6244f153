"""What keys the randomness inside the network: by rank, or alike on all ranks."""

from test_learner import batch, network

from dinoctl.spec.recipe import Losses
from dinoctl.training.learner import pretraining_learner
from dinoctl.training.seeds import shared_seed, step_seed


def test_seeds_of_ranks_differ_and_what_they_share_does_not() -> None:
    seeds = {(step, rank): step_seed(7, step, rank) for step in range(20) for rank in range(20)}
    assert len(set(seeds.values())) == 400
    shared = {step: {shared_seed(seeds[step, rank]) for rank in range(20)} for step in range(20)}
    assert all(len(values) == 1 for values in shared.values())
    assert len(set.union(*shared.values())) == 20


def test_rotary_places_are_scaled_alike_on_all_ranks() -> None:
    learner = pretraining_learner(network(rope_base=100.0, rope_rescale=2.0), Losses())
    losses = [
        learner(**{**batch(), "seed": step_seed(0, step, rank)})[0].item() for step, rank in ((3, 0), (3, 5), (4, 0))
    ]
    assert losses[0] == losses[1] != losses[2]
