"""Three hosts agree about the bytes between them: the bytes that one host shows as sent to another are the
bytes that the other shows as received.
"""

import os
from itertools import permutations

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from pyflannel.model.status import Status
from testlab.documents import read_document
from testlab.faults import paused
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

_PINGS, _PACKET = 20, 1000
"""Number of pings, and the size in bytes of each IP packet."""


@pytest.fixture(scope="module")
def hosts(overlay: Overlay) -> list[Host]:
    """Three hosts on both sides of a router, each with a bridge as Docker would have."""
    overlay.set_backend("vxlan")
    three = [overlay.hosts[name] for name in ("docker1", "docker2", "docker3")]

    def join(host: Host) -> None:
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}")

    together([lambda host=host: join(host) for host in three])
    overlay.settle(*three)
    for host in three:
        batch = f"link add br7 type bridge\nlink set br7 up\naddress add {host.gateway()} dev br7\n"
        host.run(["ip", "-batch", "-"], text=batch)
    return three


def columns(host: Host) -> dict[str, tuple[int, int]]:
    """Return the bytes from and to each other host, by its subnet."""
    peers = read_document(["peers"], host.flannelctl("peers", "--no-probe", "--json"))["peers"]
    return {peer["subnet"]: (peer["received_bytes"], peer["sent_bytes"]) for peer in peers}


def agreed(hosts: list[Host]) -> dict[tuple[str, str], int]:
    """Return the bytes from each host to each other host, by their names, when both hosts show the same.

    A daemon may send probes while the hosts are asked one after the other.
    """
    found: dict[tuple[str, str], int] = {}

    def agree() -> bool:
        shown = {host.name: columns(host) for host in hosts}
        for one, other in permutations(hosts, 2):
            sent = shown[one.name][str(other.lease())][1]
            found[one.name, other.name] = sent
            if sent is None or sent != shown[other.name][str(one.lease())][0]:
                return False
        return True

    wait_until(agree, what="the hosts show the same bytes", deadline_s=60.0)
    return found


@pytest.mark.parametrize(
    ("kind", "programs", "headers"), [("vxlan", "off", 50), ("udp", "off", 28), ("udp", "safe", 28)]
)
def test_both_hosts_show_the_same_bytes_in_each_direction(
    hosts: list[Host], overlay: Overlay, kind: str, programs: str, headers: int
) -> None:
    config = overlay.config(SubnetLen=28, FastPath=programs, Backend={"Type": kind})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)

    def uses_backend(status: Status) -> bool:
        return (
            status.backend is not None
            and status.backend.type == kind
            and (status.fast_path is None or status.fast_path.mode == programs)
        )

    for host in hosts:
        overlay.wait_status(host, uses_backend, f"uses {kind} with programs {programs}")
    overlay.settle(*hosts)
    one, other, third = hosts
    sizes = {one.name: _PINGS, other.name: 2 * _PINGS, third.name: 3 * _PINGS}
    before = agreed(hosts)

    for source, target in permutations(hosts, 2):
        ping = ["ping", "-q", "-i", "0.01", "-c", str(sizes[source.name]), "-s", str(_PACKET - 28)]
        source.run([*ping, "-I", str(source.gateway().ip), str(target.gateway().ip)])
    after = agreed(hosts)

    for source, target in permutations(hosts, 2):
        sent = after[source.name, target.name] - before[source.name, target.name]
        packets = sizes[source.name] + sizes[target.name]  # requests, and replies to the other host
        # The daemons may probe the MTU of the path once, with two sizes in each direction.
        assert sent < (packets + 4) * (_PACKET + headers)
        missing = packets * (_PACKET + headers) - sent
        if missing > 0:  # no packet is missing, only headers of packets in batches
            assert (kind, programs) == ("udp", "off")
            assert missing % headers == 0
            assert missing < packets * headers


def test_a_peer_without_an_answer_has_unknown_bytes_and_the_others_are_known(
    hosts: list[Host], overlay: Overlay
) -> None:
    one, other, third = hosts
    with paused(overlay.daemons[other.name]):
        found = columns(one)
        shown = one.flannelctl("peers", "--no-probe").splitlines()

    assert found[str(other.lease())][1] is None
    assert found[str(third.lease())][1] >= 0
    assert columns(one)[str(other.lease())][1] is not None
    (line,) = (line for line in shown if str(other.lease()) in line)
    assert " -  " in line
