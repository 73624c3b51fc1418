"""Floods of tunnel packets of a stranger: hosts of the network lose no packet, and the forwarder does not
process the packets of the stranger.
"""

import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

import testlab
from pyflannel.lab.topology import LEFT, Host, HostPlace
from testlab.forged_packets import datagram, vxlan_payload
from testlab.usage import running_s

FLOOD_S, LONG_FLOOD_S = 5.0, 60.0
MOST_FORWARDER_SHARE = 0.02
"""Additional share of a processor for the forwarder during a flood."""

PORTS = {"udp": 8285, "vxlan": 8472}


@pytest.mark.fault("flood of tunnel packets by a stranger")
def test_a_flood_by_a_stranger(network, long_run: bool, figures: Callable[[str], None]) -> None:
    """One process sends from the stranger's own address, another process from ten thousand forged
    addresses.
    """
    place = HostPlace("stranger", LEFT, IPv4Interface((LEFT.gateway.network[200], 24)))
    (stranger,) = network.overlay.lab.add_hosts(place)
    seconds = LONG_FLOOD_S if long_run else FLOOD_S
    with network.pinged("flood of tunnel packets by a stranger") as pings:
        quiet_share = forwarder_share(network, lambda: pings.wait_s(seconds))
        # After a first packet, the stranger is in the table of senders before the table is full.
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


def flood(network, stranger: Host, seconds: float) -> None:
    """Send tunnel packets to the victim at the maximum rate of the machine."""
    packet = datagram(network.target.address, network.source.address, 7000, b"forged")
    links = {link["ifname"]: link.get("address", "") for link in network.victim.links()}
    payload = packet if network.kind == "udp" else vxlan_payload(packet, links["flannel.1"])
    words = [network.victim.address, PORTS[network.kind], payload.hex(), seconds]
    script = Path(testlab.__file__).with_name("flooding.py")
    stranger.run([sys.executable, script, *map(str, words)])


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
