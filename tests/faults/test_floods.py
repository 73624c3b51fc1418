"""Floods of tunnel packets of a stranger: hosts of the network lose no packet, and the forwarder does not
process the packets of the stranger.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

import testlab
from pyflannel.lab.topology import LEFT, Host, HostPlace
from testlab.forged_packets import datagram, vxlan_payload
from testlab.ipv6_cluster import NAMES, bridge, cluster_in, join_dual_stack, wait_reached
from testlab.overlay import Overlay, PingStream, ipv6_underlay, overlay_in
from testlab.usage import running_s

FLOOD_S, LONG_FLOOD_S = 5.0, 60.0
PING_INTERVAL_S = 0.001
MOST_FORWARDER_SHARE = 0.02
"""Additional share of a processor for the forwarder during a flood."""

PORTS = {"udp": 8285, "vxlan": 8472}


@pytest.mark.fault("flood of tunnel packets by a stranger")
def test_a_flood_by_a_stranger_loses_no_packet_of_members(
    network, long_run: bool, figures: Callable[[str], None]
) -> None:
    """One process sends from the stranger's own address, another process from ten thousand forged
    addresses.
    """
    place = HostPlace("stranger", LEFT, IPv4Interface((LEFT.gateway.network[200], 24)))
    (stranger,) = network.overlay.lab.add_hosts(place)
    seconds = LONG_FLOOD_S if long_run else FLOOD_S
    with network.pinged("flood of tunnel packets by a stranger") as pings:
        quiet_share = forwarder_share(network, lambda: pings.wait_s(seconds))
        # The first packet enters the stranger into the table of senders, before the table is full.
        flood(network, stranger, 0.01)
        before = arrived(network.victim)
        share = forwarder_share(network, lambda: flood(network, stranger, seconds))
        rate = (arrived(network.victim) - before) / seconds
    network.wait_well()
    figures(
        f"{network.path}: {rate:,.0f} packets a second, nearly all of strangers, forwarder {share:.1%} of a"
        f" processor, {quiet_share:.1%} without the flood"
    )

    strangers = network.overlay.status(network.victim).strangers
    assert str(stranger.address) in [str(one.address) for one in strangers]
    assert share <= quiet_share + MOST_FORWARDER_SHARE


@pytest.fixture(params=["both families", "IPv6 alone"])
def ipv6_hosts(request: pytest.FixtureRequest) -> Iterator[tuple[Overlay, list[Host]]]:
    """Three hosts of a vxlan network with IPv6, each with a bridge."""
    with overlay_in("floods") as overlay:
        hosts = [overlay.hosts[name] for name in NAMES]
        if request.param == "IPv6 alone":
            with cluster_in(overlay) as cluster:
                cluster.configure("vxlan")
                cluster.join(*hosts)
                wait_reached(*hosts)
                yield overlay, hosts
            return
        join_dual_stack(overlay, hosts)
        yield overlay, hosts


def test_a_flood_over_ipv6_by_a_stranger(
    ipv6_hosts: tuple[Overlay, list[Host]], long_run: bool, figures: Callable[[str], None]
) -> None:
    """The stranger sends from its own IPv6 address and from ten thousand forged addresses. Pings on two paths
    lose no packet.
    """
    overlay, hosts = ipv6_hosts
    victim, *others = hosts
    (stranger,) = overlay.lab.add_hosts(HostPlace("stranger", LEFT, IPv4Interface("10.10.10.200/24")))
    overlay.give_ipv6(stranger)
    packet = datagram(bridge(others[0]).ip, bridge(victim).ip, 7000, b"forged")
    macs = {link["ifname"]: link.get("address", "") for link in victim.links()}
    payload = vxlan_payload(packet, macs["flannel-v6.1"])
    seconds = LONG_FLOOD_S if long_run else FLOOD_S
    with ExitStack() as stack:
        streams = [
            stack.enter_context(
                PingStream(other, bridge(victim).ip, interval_s=PING_INTERVAL_S, is_urgent=True)
            )
            for other in others
        ]
        for stream in streams:
            stream.wait_answered()
        before = arrived(victim)
        for duration in (0.01, seconds):
            words = [ipv6_underlay(victim).ip, PORTS["vxlan"], payload.hex(), duration]
            stranger.run([*FLOODING, *map(str, words)])
        rate = (arrived(victim) - before) / seconds
        for stream in streams:
            stream.wait_answered()
    numbers = [max(answer.number for answer in stream.answers()) for stream in streams]
    figures(f"vxlan over IPv6: {rate:,.0f} packets a second, nearly all of strangers; pings {numbers}")

    assert [stream.lost() for stream in streams] == [[], []]
    strangers = [str(one.address) for one in overlay.status(victim).strangers]
    assert str(ipv6_underlay(stranger).ip) in strangers
    # The number of forged packets is much larger than the number of pings.
    assert rate * seconds > 2 * sum(numbers)


_TESTS = Path(testlab.__file__).parent.parent
FLOODING = ["env", f"PYTHONPATH={_TESTS}", sys.executable, "-m", "testlab.flooding"]


def flood(network, stranger: Host, seconds: float) -> None:
    """Send tunnel packets to the victim at the maximum rate of the machine."""
    packet = datagram(network.target.address, network.source.address, 7000, b"forged")
    links = {link["ifname"]: link.get("address", "") for link in network.victim.links()}
    payload = packet if network.kind == "udp" else vxlan_payload(packet, links["flannel.1"])
    words = [network.victim.address, PORTS[network.kind], payload.hex(), seconds]
    stranger.run([*FLOODING, *map(str, words)])


def arrived(host: Host) -> int:
    """Return the number of packets that a host has received on the underlay."""
    return int(host.run(["cat", "/sys/class/net/eth0/statistics/rx_packets"]).stdout)


def forwarder_share(network, act: Callable[[], object]) -> float:
    """Return the share of a processor that the victim's forwarder uses during `act`."""
    if network.kind != "udp":
        act()
        return 0.0
    pid = network.forwarder_pid()
    before, began = running_s(pid), time.monotonic()
    act()
    return (running_s(pid) - before) / (time.monotonic() - began)
