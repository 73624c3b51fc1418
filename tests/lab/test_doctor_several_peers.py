"""flannelctl doctor finds a fault that concerns only some of several peers."""

import contextlib
import json
import os
from collections.abc import Iterator

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.doctor import problems
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def four(overlay: Overlay) -> list[Host]:
    overlay.set_backend("vxlan")
    hosts = list(overlay.hosts.values())
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    return hosts


def test_each_of_three_peers_behind_an_asymmetric_route_is_found(four: list[Host]) -> None:
    """The kernel is asked for the routes of the tunnel packets of two peers, so silent peers come first."""
    one, *others = four
    assert problems(one) == []
    one.run(["sh", "-c", "ip link add way type veth peer yaw; ip link set way up; ip link set yaw up"])
    one.run(["sysctl", "-qw", "net/ipv4/conf/all/rp_filter=1"])
    found = {}
    for other in others:
        one.run(["ip", "route", "add", str(other.address), "dev", "way"])
        found[other.name] = [finding["code"] for finding in problems(one)]
        one.run(["ip", "route", "delete", str(other.address), "dev", "way"])

    assert found == {other.name: ["source-refused"] for other in others}
    one.run(["sh", "-c", "ip link delete way; sysctl -qw net/ipv4/conf/all/rp_filter=0"])


def test_a_fault_of_all_packets_is_the_only_error(overlay: Overlay, four: list[Host]) -> None:
    """The store and some peers are behind the gateway, which has a wrong MAC address. Their silence is a
    consequence.

    Then a peer also has the address of the host, before the store responds again.
    """
    host = four[0]
    gateway = host.run(["ip", "route", "show", "default"]).stdout.split()[2]
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)

    entry = [gateway, "dev", "eth0"]
    host.run(["ip", "neighbour", "replace", *entry, "lladdr", "02:00:00:00:00:99", "nud", "permanent"])
    wait_until(
        lambda: any(
            "the store does not respond" in line for one in problems(host) for line in one["evidence"]
        ),
        what="doctor names the store",
        deadline_s=60.0,
    )
    found = problems(host)

    (error,) = [one for one in found if one["severity"] == "error"]
    assert error["code"] == "neighbour-set"
    assert error["cause"] == f"the MAC address of {gateway}, on the path to the store, was set manually"
    with address_of_two_hosts(overlay, host, four[1]) as mac:
        host.run(["sh", "-c", error["fix"]])
        taken, held = problems(host), problems(four[1])
    (error,) = [one for one in taken if one["severity"] == "error"]
    assert error["evidence"][0] == f"{mac} answers an ARP probe for {host.address} at eth0"
    assert error["evidence"][1].startswith("consequence: the store does not respond")
    (error,) = [one for one in held if one["severity"] == "error"]
    assert (error["code"], error["fix"]) == ("peer-address", f"ip address delete {host.address}/32 dev eth0")
    assert "peers-refused" not in [one["code"] for one in held]
    for one in (host, four[1]):
        wait_until(lambda one=one: problems(one) == [], what="doctor finds nothing again", deadline_s=60.0)


@contextlib.contextmanager
def address_of_two_hosts(overlay: Overlay, one: Host, other: Host) -> Iterator[str]:
    """Give a host the address of another host, and give its MAC address. The router sends all packets for the
    address to it, as after an announcement by ARP.
    """
    router = overlay.lab.router
    (link,) = json.loads(other.run(["ip", "-json", "link", "show", "dev", "eth0"]).stdout)
    (route,) = json.loads(router.run(["ip", "-json", "route", "get", str(one.address)]).stdout)
    entry = [str(one.address), "dev", route["dev"]]
    other.run(["ip", "address", "add", f"{one.address}/32", "dev", "eth0"])
    router.run(["ip", "neighbour", "replace", *entry, "lladdr", link["address"], "nud", "permanent"])
    try:
        yield link["address"]
    finally:
        other.run(["ip", "address", "delete", f"{one.address}/32", "dev", "eth0"])
        router.run(["ip", "neighbour", "delete", *entry])


def test_a_small_ttl_of_the_host_is_the_only_error(four: list[Host]) -> None:
    """Two peers are behind a router, which drops the tunnel packets of this host."""
    host = four[0]
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)
    host.run(["sh", "-c", "sysctl -qw net.ipv4.ip_default_ttl=1; ip link set flannel.1 type vxlan ttl 2"])

    (found,) = [one for one in problems(host) if one["severity"] == "error"]

    assert found["code"] == "ttl-low"
    lines = ["net.ipv4.ip_default_ttl = 1", "ip -details link show dev flannel.1: ttl 2"]
    assert found["evidence"][:2] == lines
    host.run(["sh", "-c", found["fix"]])
    wait_until(lambda: problems(host) == [], what="doctor finds nothing again", deadline_s=60.0)


def test_two_hosts_that_a_switch_isolates_are_named(overlay: Overlay, four: list[Host]) -> None:
    """Both hosts reach the others. Later, ARP for the isolated host fails too."""
    host, other, router = four[0], four[1], overlay.lab.router
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)
    for one in (host, other):
        router.run(["bridge", "link", "set", "dev", one.name, "isolated", "on"])
    try:
        (found,) = problems(host)
    finally:
        for one in (host, other):
            router.run(["bridge", "link", "set", "dev", one.name, "isolated", "off"])

    assert found["code"] in ("peers-silent", "no-neighbour")
    assert "isolat" in found["fix"]
    wait_until(lambda: problems(host) == [], what="doctor finds nothing again", deadline_s=60.0)


def test_a_router_that_limits_the_rate_is_named_as_loss(overlay: Overlay, four: list[Host]) -> None:
    host, router = four[0], overlay.lab.router
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)
    (route,) = json.loads(router.run(["ip", "-json", "route", "get", str(host.address)]).stdout)
    limit = ["tbf", "rate", "238kbit", "burst", "1600", "latency", "20ms"]
    router.run(["tc", "qdisc", "replace", "dev", route["dev"], "root", *limit])
    try:
        wait_until(
            lambda: [one["code"] for one in problems(host)] == ["packets-lost"],
            what="the loss is the only finding",
            deadline_s=60.0,
        )
    finally:
        router.run(["tc", "qdisc", "delete", "dev", route["dev"], "root"])
    wait_until(lambda: problems(host) == [], what="doctor finds nothing again", deadline_s=60.0)


def test_a_path_that_loses_packets_is_named(overlay: Overlay, four: list[Host]) -> None:
    """The router between the hosts drops a part of the packets, then a part of the large packets."""
    host, router = four[0], overlay.lab.router
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)
    chain = "chain c { type filter hook forward priority 0; numgen random mod 10 < 4 drop; }"
    router.run(["nft", f"table ip lossy {{ {chain}; }}"])

    wait_until(
        lambda: "packets-lost" in [one["code"] for one in problems(host)],
        what="doctor finds the loss",
        deadline_s=60.0,
    )

    router.run(["nft", "delete table ip lossy"])
    # The packets may pass the chain up to three times on their way: at the router, and at both switches.
    large = "chain c { type filter hook forward priority 0; ip length > 1000 numgen random mod 10 < 2 drop; }"
    router.run(["nft", f"table ip lossy {{ {large}; }}"])
    (found,) = problems(host)
    assert found["code"] == "packets-lost"
    assert found["cause"].startswith("a part of the large packets to ")
    router.run(["nft", "delete table ip lossy"])
    wait_until(lambda: problems(host) == [], what="doctor finds nothing again", deadline_s=60.0)
