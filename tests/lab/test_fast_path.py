"""The fast path of the daemon: attached by default, repaired, updated, kept over restarts, and removed."""

import os

import pytest

from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import Role
from pyflannel.wire.forwarder_control import Kind, decode_counters
from testlab import kernel_programs
from testlab.inside import run_inside
from testlab.kernel_programs import KernelPrograms

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
SAFE = [
    "flannel_decap at eth0",
    "flannel_encap at flannel0",
    "flannel_hop at br0",
    "flannel_nexthop at eth0",
]


def look(host) -> KernelPrograms:
    return run_inside(host, kernel_programs.look)


def wait_programs(host, expected: list[str]) -> None:
    wait_until(
        lambda: look(host).programs == expected,
        what=f"{host.name} has {expected or 'no program'}",
        deadline_s=DEADLINE_S,
    )


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 in one network, with a container each."""
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        overlay.join(host)
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    for host in ends:
        wait_programs(host, SAFE)
    return ends, containers


def test_the_fast_path_is_attached_by_default(overlay, ends):
    (one, other), (box, far) = ends
    wait_until(
        lambda: str(box.address) in look(one).containers,
        what="the container's entry",
        deadline_s=DEADLINE_S,
    )
    wait_until(
        lambda: look(one).peers == [f"{other.lease()} True"],  # the same value as in the lease of the host
        what="the peer's entry",
        deadline_s=DEADLINE_S,
    )
    before = sent_by_forwarder(overlay, one)
    assert ping(box, far.address).is_reached
    assert sent_by_forwarder(overlay, one) == before


def sent_by_forwarder(overlay, host) -> int:
    return decode_counters(overlay.ask_forwarder(host, Kind.READ_COUNTERS))["sent_packets"]


@pytest.mark.parametrize("role", Role)
def test_a_removed_program_is_attached_again(ends, role):
    (one, _), (box, far) = ends
    run_inside(one, lambda: kernel_programs.remove_program(role))

    wait_programs(one, SAFE)
    assert ping(box, far.address).is_reached


def test_a_peer_removed_from_the_table_is_added_again(ends):
    """The kernel does not announce the removal.

    The next audit adds the peer again. Until then, the forwarder sends the packets.
    """
    (one, _), (box, far) = ends
    peers = look(one).peers
    run_inside(one, kernel_programs.remove_peers)

    assert ping(box, far.address).is_reached
    wait_until(lambda: look(one).peers == peers, what="the peer's entry", deadline_s=DEADLINE_S)


@pytest.mark.parametrize("direction", ["out", "in"])
def test_an_ipsec_policy_sends_packets_through_user_space(overlay, ends, direction):
    """The programs bypass IPsec, so user space handles the packets of a peer that a policy may concern."""
    (one, other), (box, far) = ends
    wait_reached([box, far], deadline_s=DEADLINE_S)
    peers = look(one).peers
    addresses = (one.address, other.address) if direction == "out" else (other.address, one.address)
    selector = ["src", str(addresses[0]), "dst", str(addresses[1]), "proto", "udp", "dport", "8285"]
    selector += ["dir", direction]

    one.run(["ip", "xfrm", "policy", "add", *selector, "action", "block"])
    wait_until(lambda: look(one).peers == [], what="no entry of the peer", deadline_s=DEADLINE_S)
    assert not ping(box, far.address).is_reached
    backend = overlay.status(one).backend
    assert backend is not None
    assert "IPsec" in str(backend.notes)

    one.run(["ip", "xfrm", "policy", "delete", *selector])
    wait_until(lambda: look(one).peers == peers, what="the peer's entry", deadline_s=DEADLINE_S)
    wait_reached([box, far], deadline_s=DEADLINE_S)


def test_no_packet_is_lost_while_daemon_and_forwarder_are_killed(overlay, ends, ping_stream):
    """The next daemon keeps the attached programs."""
    (one, other), (_, far) = ends
    before = [look(host).identifiers for host in (one, other)]
    with ping_stream(one, far.address, interval_s=0.001) as stream:
        stream.wait_answered()
        for host in (one, other):
            overlay.daemons[host.name].kill()
            # The process ID is valid only in the PID namespace of the sandbox.
            host.run(["pkill", "-KILL", "-x", "flannel-forward"])
        stream.wait_answered()
        for host in (one, other):
            overlay.join(host)
        overlay.settle(one, other)
        stream.wait_answered()

    assert stream.lost() == []
    assert [look(host).identifiers for host in (one, other)] == before


def test_a_bridge_that_gets_filter_rules_loses_its_program(ends):
    (one, _), (box, far) = ends
    one.run(["nft", "add", "table", "bridge", "foreign"])
    wait_programs(one, [program for program in SAFE if "hop at br0" not in program])
    assert ping(box, far.address).is_reached

    one.run(["nft", "delete", "table", "bridge", "foreign"])
    wait_programs(one, SAFE)


def test_an_ended_container_is_removed_from_the_table(ends):
    (one, _), _ = ends
    another = one.container("another", gateway=one.gateway(), number=9, mtu=1472)
    another.run(["ping", "-c", "1", "-W", "5", str(one.gateway().ip)])
    wait_until(lambda: str(another.address) in look(one).containers, what="an entry", deadline_s=DEADLINE_S)

    another.remove()

    wait_until(
        lambda: str(another.address) not in look(one).containers, what="no entry", deadline_s=DEADLINE_S
    )


def test_a_host_can_select_user_space(overlay, ends):
    """The flag of the host has precedence over the network config, which requests the fast path."""
    (one, _), (box, far) = ends
    overlay.daemons[one.name].stop()
    overlay.daemons[one.name] = one.start_flanneld(f"--store={overlay.etcd.url}", "--fast-path=off")

    wait_programs(one, [])
    before = sent_by_forwarder(overlay, one)
    assert ping(box, far.address).is_reached
    assert sent_by_forwarder(overlay, one) > before

    overlay.daemons[one.name].stop()
    overlay.join(one)
    wait_programs(one, SAFE)


def test_cleanup_leaves_no_program(overlay, ends):
    (one, _), _ = ends
    overlay.daemons[one.name].stop()

    said = one.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert "removed program flannel_decap at eth0" in said
    assert look(one).programs == []
