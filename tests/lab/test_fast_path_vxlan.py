"""Mode flow over vxlan: attached on request, repaired, kept over restarts, and removed.

The kernel carries all other packets.
"""

import json
import os
import sys

import pytest

from pyflannel.lab.kernel_path import measure_throughput
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import Role
from testlab import kernel_programs
from testlab.forged_packets import SENDER_MAC, datagram, vxlan_payload
from testlab.inside import run_inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
FLOW = ["flannel_decap", "flannel_hop", "flannel_nexthop", "flannel_short"]
ROLES = [Role.DECAPSULATE, Role.LAST_HOP, Role.NEXT_HOP, Role.SHORTCUT]
SEND = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", 5000))
for _ in range(100):
    sender.sendto(b"x", (sys.argv[1], 5000))
"""
STREAM = """
import itertools, socket, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", 5000))
for _ in itertools.count():
    sender.sendto(b"x", (sys.argv[1], 5000))
    time.sleep(0.001)
"""
FORGE = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(50):
    sender.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8472))
"""


def programs(host) -> list[str]:
    return [word.partition(" ")[0] for word in run_inside(host, kernel_programs.look).programs]


def wait_programs(host, expected: list[str]) -> None:
    wait_until(
        lambda: programs(host) == expected,
        what=f"{host.name} has {expected or 'no program'}",
        deadline_s=DEADLINE_S,
    )


def wait_flow(host, box) -> None:
    """Wait until the host has the programs of mode flow. The kernel forgets an idle container, so that its
    program is removed. Therefore the container sends packets.
    """

    def has_programs() -> bool:
        box.run_in_network(["ping", "-c", "1", "-W", "5", str(host.gateway().ip)])
        return programs(host) == FLOW

    wait_until(has_programs, what=f"{host.name} has {FLOW}", deadline_s=DEADLINE_S)


def put_config(overlay, **more: str) -> None:
    config = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}, **more})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)


def cached(box, far, host) -> int:
    """Send a hundred packets of one flow. Return the number that bypasses the firewall of the host."""
    before = run_inside(host, kernel_programs.packets_by_outcome)["cached_out"]
    box.run_in_network([sys.executable, "-c", SEND, str(far.address)])
    return run_inside(host, kernel_programs.packets_by_outcome)["cached_out"] - before


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 in a vxlan network in mode flow, with a container each."""
    put_config(overlay, FastPath="flow")
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        host.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1"])
        overlay.join(host)
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1450) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    for host, container in zip(ends, containers, strict=True):
        wait_flow(host, container)
    return ends, containers


def wait_cached(box, far, host) -> None:
    wait_until(lambda: cached(box, far, host) > 50, what="packets are cached", deadline_s=DEADLINE_S)


def test_flows_bypass_the_firewall_and_the_status_counts_them(overlay, ends):
    (one, other), (box, far) = ends
    wait_cached(box, far, one)

    assert measure_throughput(box, far, seconds=1).received_bytes > 0
    status = overlay.status(one)
    assert status.fast_path.mode == "flow"
    assert status.fast_path.counters["cached_out"] > 50
    assert status.backend.sent > status.fast_path.byte_counters["cached_out"] > 0
    assert overlay.status(other).fast_path.counters["cached_in"] > 50


@pytest.mark.parametrize("role", ROLES)
def test_a_removed_program_is_attached_again(ends, role):
    (one, _), (box, far) = ends
    run_inside(one, lambda: kernel_programs.remove_program(role))

    wait_flow(one, box)
    assert ping(box, far.address).is_reached
    wait_cached(box, far, one)


def test_programs_follow_a_device_that_was_created_again(ends):
    (one, _), (box, far) = ends
    one.run(["ip", "link", "delete", "flannel.1"])

    wait_reached([box, far], deadline_s=DEADLINE_S)
    wait_flow(one, box)
    wait_cached(box, far, one)


@pytest.mark.parametrize("direction", ["out", "in"])
def test_an_ipsec_policy_ends_caching(overlay, ends, direction):
    (one, other), (box, _) = ends
    addresses = (one.address, other.address) if direction == "out" else (other.address, one.address)
    selector = ["src", str(addresses[0]), "dst", str(addresses[1]), "proto", "udp", "dport", "8472"]
    selector += ["dir", direction]

    one.run(["ip", "xfrm", "policy", "add", *selector, "action", "block"])
    wait_programs(one, [])
    assert "IPsec" in str(overlay.status(one).backend.notes)

    one.run(["ip", "xfrm", "policy", "delete", *selector])
    wait_flow(one, box)


def test_the_guard_drops_a_forged_packet_of_a_cached_flow(overlay, ends):
    """A host without a lease sends packets with the addresses, ports and length of the flow."""
    (one, other), (box, far) = ends
    wait_cached(far, box, other)
    stranger = overlay.hosts["docker2"]
    packet = bytearray(datagram(far.address, box.address, 5000, b"f"))
    packet[26:28] = b"\x12\x34"  # without a checksum, the packet would never bypass the guard
    macs = {
        host: link["address"] for host in ends[0] for link in host.links() if link["ifname"] == "flannel.1"
    }
    frame = vxlan_payload(bytes(packet), macs[one]).replace(
        SENDER_MAC, bytes.fromhex(macs[other].replace(":", ""))
    )
    before = run_inside(one, kernel_programs.packets_by_outcome)["cached_in"]
    stream = far.start_in_network([sys.executable, "-c", STREAM, str(box.address)], name="stream")
    try:
        wait_until(
            lambda: run_inside(one, kernel_programs.packets_by_outcome)["cached_in"] > before + 50,
            what="packets of the flow bypass the guard",
            deadline_s=DEADLINE_S,
        )
        stranger.run([sys.executable, "-c", FORGE, str(one.address), frame.hex()])
    finally:
        stream.kill()

    def has_dropped_all(status) -> bool:
        return [(one.address, one.packets) for one in status.strangers] == [(stranger.address, 50)]

    overlay.wait_status(one, has_dropped_all, "dropped all forged packets", deadline_s=DEADLINE_S)


def test_no_packet_is_lost_while_the_daemons_are_killed(overlay, ends, ping_stream):
    """The next daemon keeps the attached programs. Until then, all packets pass the firewall."""
    hosts, (box, far) = ends
    before = [run_inside(host, kernel_programs.look).identifiers for host in hosts]
    with ping_stream(hosts[0], far.address, interval_s=0.001) as stream:
        stream.wait_answered()
        for host in hosts:
            overlay.daemons[host.name].kill()
        stream.wait_answered()
        wait_until(lambda: cached(box, far, hosts[0]) == 0, what="no packet is cached", deadline_s=5)
        for host in hosts:
            overlay.join(host)
        overlay.settle(*hosts)
        stream.wait_answered()

    assert stream.lost() == []
    assert [run_inside(host, kernel_programs.look).identifiers for host in hosts] == before


def test_a_container_that_ended_loses_its_program_and_its_entry(ends):
    (one, _), _ = ends
    another = one.container("another", gateway=one.gateway(), number=9, mtu=1450)

    def has_parts() -> tuple[bool, bool]:
        found = run_inside(one, kernel_programs.look)
        return "flannel_short at c-another" in found.programs, str(another.address) in found.containers

    another.run(["ping", "-c", "1", "-W", "5", str(one.gateway().ip)])
    wait_until(lambda: has_parts() == (True, True), what="its program and entry", deadline_s=DEADLINE_S)

    another.remove()

    wait_until(lambda: has_parts() == (False, False), what="neither remains", deadline_s=DEADLINE_S)


def test_the_network_config_switches_the_mode_without_a_lost_ping(overlay, ends, ping_stream):
    hosts, (box, far) = ends
    with ping_stream(hosts[0], far.address, interval_s=0.001) as stream:
        stream.wait_answered()
        put_config(overlay)
        for host in hosts:
            wait_programs(host, [])
        stream.wait_answered()
        assert overlay.status(hosts[0]).fast_path is None
        put_config(overlay, FastPath="flow")
        for host, container in zip(hosts, (box, far), strict=True):
            wait_flow(host, container)
        stream.wait_answered()

    assert stream.lost() == []
    wait_cached(box, far, hosts[0])


def test_cleanup_leaves_no_program(overlay, ends):
    (one, _), _ = ends
    overlay.daemons[one.name].stop()

    said = one.flannelctl("--store", overlay.etcd.url, "cleanup")

    assert "removed program flannel_decap at eth0" in said
    assert programs(one) == []
