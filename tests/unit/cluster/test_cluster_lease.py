"""Leader election: one leads, another follows after expiry or release, and who can't renew falls silent in time."""

import pytest

from dinoctl.cluster.errors import NotLeading, Unavailable
from dinoctl.cluster.lease import Lease, Terms
from dinoctl.cluster.resources import CONFIGMAPS, LEASES
from support.kube.contract import SPACE, config_map
from support.kube.memory import Call, MemoryApi, MemoryServer

TERMS = Terms(duration=15.0, renew_deadline=10.0, retry=2.0)


class Replica:
    def __init__(self, server: MemoryServer, name: str) -> None:
        self.now, self.down, self.lost = 1000.0, False, False
        self.log: list[str] = []
        self.lease = Lease(
            MemoryApi(server, self._hook),
            SPACE,
            "dinoctl-operator",
            name,
            began=lambda: self.log.append("began"),
            ended=lambda: self.log.append("ended"),
            terms=TERMS,
            clock=lambda: self.now,
        )

    def _hook(self, call: Call) -> None:
        if self.down and call.when == "before":
            raise Unavailable(call.verb, "down")
        if self.lost and call.when == "after" and call.writes:
            raise Unavailable(call.verb, "answer lost")


def wait(seconds: float, *replicas: Replica) -> None:
    """Time passes in steps of the retry period, and each replica takes its step."""
    for _ in range(round(seconds / TERMS.retry)):
        for replica in replicas:
            replica.now += TERMS.retry
            replica.lease.step()
        assert sum(replica.lease.held() for replica in replicas) <= 1


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
def two(server) -> tuple[Replica, Replica]:
    return Replica(server, "a"), Replica(server, "b")


def test_one_leads_and_keeps_it(two) -> None:
    a, b = two
    wait(120, a, b)
    assert (a.lease.held(), b.lease.held()) == (True, False)
    assert (a.log, b.log) == (["began"], [])


def test_a_dead_leader_is_followed_after_the_duration_not_before(two) -> None:
    a, b = two
    wait(10, a, b)
    wait(14, b)
    assert not b.lease.held()
    wait(6, b)
    assert b.lease.held()
    a.lease.step()
    assert not a.lease.held()


def test_who_cannot_renew_falls_silent_before_another_begins(two, server) -> None:
    a, b = two
    wait(10, a, b)
    a.down = True
    silent = follows = None
    for second in range(40):
        a.now, b.now = a.now + 1, b.now + 1
        if second % 2:
            a.lease.step()
            b.lease.step()
        silent = second if silent is None and not a.lease.held() else silent
        follows = second if follows is None and b.lease.held() else follows
        assert not (a.lease.held() and b.lease.held())
    assert silent is not None
    assert follows is not None
    assert silent + 3 < follows


def test_a_leader_that_comes_back_in_time_goes_on(two) -> None:
    a, b = two
    wait(10, a, b)
    a.down = True
    wait(6, a, b)
    a.down = False
    wait(20, a, b)
    assert a.lease.held()
    assert a.log == ["began"]


def test_clocks_of_the_machines_do_not_matter(two, server) -> None:
    a, b = two
    b.now = -5e6
    server.clock = lambda: 0.0
    wait(60, a, b)
    assert a.lease.held()
    wait(20, b)
    assert b.lease.held()


def test_release_lets_another_begin_at_once(two) -> None:
    a, b = two
    wait(10, a, b)
    a.lease.thread.start()
    a.lease.stop()
    assert a.log == ["began", "ended"]
    b.lease.step()
    assert b.lease.held()


def test_a_lost_answer_is_found_out_by_looking_again(two) -> None:
    a, b = two
    a.lost = True
    a.lease.step()
    assert not a.lease.held()
    a.lost = False
    wait(4, a, b)
    assert a.lease.held()


def test_a_lease_that_is_taken_or_deleted_by_hand(two, server) -> None:
    a, b = two
    wait(10, a, b)
    b_identity = {"spec": {"holderIdentity": b.lease.identity}}
    MemoryApi(server).patch(LEASES, SPACE, "dinoctl-operator", b_identity)
    a.lease.step()
    assert not a.lease.held()
    assert a.log == ["began", "ended"]
    wait(4, b)
    assert b.lease.held()
    MemoryApi(server).delete(LEASES, SPACE, "dinoctl-operator")
    wait(4, b)
    assert b.lease.held()


def test_two_processes_of_one_name_are_two(server) -> None:
    a, b = Replica(server, "pod-0"), Replica(server, "pod-0")
    wait(10, a, b)
    assert (a.lease.held(), b.lease.held()) == (True, False)


def test_no_write_after_the_deadline(server) -> None:
    a = Replica(server, "a")
    api = MemoryApi(server).fenced(a.lease.check)
    with pytest.raises(NotLeading):
        api.create(CONFIGMAPS, SPACE, config_map("early"))
    a.lease.step()
    api.create(CONFIGMAPS, SPACE, config_map("good"))
    a.now += TERMS.renew_deadline
    with pytest.raises(NotLeading):
        api.patch(CONFIGMAPS, SPACE, "good", {"data": {"x": "1"}})
    assert api.get(CONFIGMAPS, SPACE, "good")["data"] == {}
