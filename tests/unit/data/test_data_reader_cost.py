import pytest

from dinoctl.data.order import SampleOrder, lanes_of
from dinoctl.data.reader.cost import estimate


def cost_of(parts: list[tuple[int, float, float]], steps: int, **settings: float) -> tuple[int, int, float]:
    chosen = {"global_batch": 8, "run_length": 16, "most_bytes": 1e9, "price_per_thousand": 0.0004, **settings}
    return estimate(parts, steps=steps, **chosen)  # type: ignore[arg-type]


def test_it_is_what_the_order_does() -> None:
    """Requests of a whole epoch, counted on the order itself: a new one where a lane's sample follows no neighbour."""
    samples = 8 * 16 * 16 + 100
    order = SampleOrder(samples, 8, seed=1)
    steps, before, requests = order.steps_per_epoch, lanes_of(8, 0, 1) - 10, 0
    for step in range(steps):
        batch = order.batch(step)
        requests += int((batch != before + 1).sum())
        before = batch
    cost = cost_of([(samples, 1.0, 1e5)], steps)
    assert cost[0] == pytest.approx(requests, rel=0.1)
    assert cost[1] == pytest.approx(steps * 8 * 1e5)


def test_prices_memory_and_parts() -> None:
    requests, size, price = cost_of([(10**9, 1.0, 1e5)], 625_000, global_batch=3072)
    assert requests == pytest.approx(625_000 * 3072 / 16, rel=1e-3)
    assert price == pytest.approx(requests / 1000 * 0.0004)
    assert size == 625_000 * 3072 * 10**5
    assert cost_of([(10**9, 1.0, 1e5)], 1000, most_bytes=4e5)[0] == pytest.approx(1000 * 8 / 4, rel=1e-3)
    assert cost_of([(10**9, 1.0, 1e5)], 1000, most_bytes=1)[0] == pytest.approx(8000)
    mixed = cost_of([(10**9, 1.0, 1e5), (10**9, 3.0, 0.0)], 1000)
    assert mixed[0] == pytest.approx(1000 * 8 / 4 / 16, rel=1e-2), "a local part costs nothing"
