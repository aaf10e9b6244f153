"""What keys the randomness of a step inside the network; that of data and masks is keyed in ``dinoctl.data``."""

_RANKS = 65_537


def step_seed(seed: int, step: int, rank: int) -> int:
    """What keys stochastic depth: each rank drops among its own samples."""
    return (seed * 1_000_003 + step) * _RANKS + rank


def shared_seed(seed: int) -> int:
    """What keys that which all ranks do alike in a step: the same of any rank's ``step_seed``."""
    return seed // _RANKS
