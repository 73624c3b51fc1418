"""Sending in runs, and the fallback if the kernel refuses runs."""

import errno

import pytest

from pyflannel.datapath import underlay
from pyflannel.datapath.counters import Counters
from pyflannel.datapath.tun import Offload, Offloads
from pyflannel.datapath.underlay import UnderlaySender

PEER, OTHER = ("10.9.0.2", 8285), ("10.9.0.3", 8285)
RUN = [memoryview(bytes(100)), memoryview(bytes(100)), memoryview(bytes(40))]


class Socket:
    """A socket that refuses runs to one peer."""

    def __init__(self, refusal: int | None = None, *, knows_runs: bool = True) -> None:
        self.refusal = refusal
        self.knows_runs = knows_runs
        self.calls: list[tuple[str, tuple[str, int]]] = []

    def setsockopt(self, *_: object) -> None:
        if not self.knows_runs:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    def sendmsg(self, packets, ancillary, flags, endpoint) -> int:
        self.calls.append(("run", endpoint))
        if self.refusal and endpoint == PEER:
            raise OSError(self.refusal, "refused")
        return sum(map(len, packets))

    def sendto(self, packet, endpoint) -> None:
        self.calls.append(("packet", endpoint))


def made(socket: Socket) -> tuple[UnderlaySender, Counters, Offloads, list[str]]:
    said: list[str] = []
    counters, offloads = Counters(), Offloads(said.append)
    return UnderlaySender(socket, counters, offloads), counters, offloads, said


def test_a_run_is_one_call():
    socket = Socket()
    sender, counters, offloads, said = made(socket)

    sender.send_run(RUN, 100, PEER)
    sender.send_run(RUN[:1], 100, PEER)

    assert socket.calls == [("run", PEER), ("packet", PEER)]
    assert (counters.sent_packets, counters.sent_bytes, counters.batches_sent) == (4, 340, 1)
    assert offloads.used is Offload.SEGMENTED_SEND
    assert said == []


@pytest.mark.parametrize("refusal", [errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP])
def test_a_peer_with_a_refused_run_gets_single_packets(refusal, monkeypatch):
    """No packet is lost, other peers keep their runs, the log has one line, and runs are retried later."""
    now = 100.0
    monkeypatch.setattr(underlay, "monotonic", lambda: now)
    socket = Socket(refusal)
    sender, counters, offloads, said = made(socket)

    sender.send_run(RUN, 100, PEER)
    sender.send_run(RUN, 100, PEER)
    sender.send_run(RUN, 100, OTHER)
    lacking = offloads.used
    now += 10
    sender.send_run(RUN, 100, PEER)
    socket.refusal = None
    now += 10
    sender.send_run(RUN, 100, PEER)

    once = [("packet", PEER)] * 3
    assert socket.calls == [("run", PEER), *once, *once, ("run", OTHER), ("run", PEER), *once, ("run", PEER)]
    assert (counters.sent_packets, counters.batches_sent) == (15, 2)
    assert not [name for name in counters.by_name() if "failed" in name]
    assert lacking is Offload(0)
    assert offloads.used is Offload.SEGMENTED_SEND
    assert len(said) == 1


def test_packets_refused_for_other_reasons_are_lost_and_counted():
    """Single packets are lost and counted in the same way."""
    sender, counters, _, said = made(Socket(errno.ENETUNREACH))

    sender.send_run(RUN, 100, PEER)

    assert counters.by_name()["send_failed_ENETUNREACH"] == 3
    assert counters.sent_packets == 0
    assert said == []


def test_a_kernel_without_runs_gets_single_packets():
    socket = Socket(knows_runs=False)
    sender, _, offloads, said = made(socket)

    sender.send_run(RUN, 100, PEER)

    assert socket.calls == [("packet", PEER)] * 3
    assert offloads.used is Offload(0)
    assert said == [
        "SEGMENTED_SEND is unavailable, packets are handled one by one: [Errno 92] Protocol not available"
    ]
