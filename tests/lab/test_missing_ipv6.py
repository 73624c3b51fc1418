"""Hosts and peers of a network with both families without usable IPv6: one clear line names the reason."""

import os

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.documents import read_document
from testlab.ipv6_cluster import NAMES, bridge, join_dual_stack, wait_reached
from testlab.overlay import Overlay, PingStream, ipv6_underlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 20.0
DISABLED = "an IPv6 address of eth0: IPv6 is disabled on it (sysctl net.ipv6.conf.eth0.disable_ipv6)"
IPV4_PEER = "10.100.200.0/24"


@pytest.fixture(scope="module")
def hosts(overlay: Overlay) -> list[Host]:
    """Three hosts of a vxlan network with both families, each with a bridge."""
    found = [overlay.hosts[name] for name in NAMES]
    join_dual_stack(overlay, found)
    for host in found:
        host.run(["ip", "address", "add", str(host.gateway()), "dev", "br7"])
    return found


def set_ipv6(host: Host, *, is_on: bool) -> None:
    """Turn IPv6 of the underlay on or off. The kernel then removes the IPv6 addresses."""
    host.run(["sysctl", "-qw", f"net.ipv6.conf.eth0.disable_ipv6={int(not is_on)}"])


def test_a_peer_without_ipv6_is_named_once(overlay: Overlay, hosts: list[Host]) -> None:
    """The peer has the lease of an original without IPv6. The host has a route to its IPv4 subnet."""
    first = hosts[0]
    after = len(overlay.log(first))
    lease = (
        '{"PublicIP":"10.10.10.77","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:77"}}'
    )
    key = f"{PREFIX}/subnets/{IPV4_PEER.replace('/', '-')}"
    overlay.etcd.etcdctl("put", key, lease)
    wait_until(lambda: IPV4_PEER in str(first.routes()), what="a route to the peer", deadline_s=SOON_S)
    overlay.wait_logged(first, "its lease has no IPv6 subnet or no PublicIPv6", after=after)
    peers = read_document(["peers"], first.flannelctl("peers", "--json", "--no-probe"))["peers"]
    overlay.etcd.etcdctl("del", key)
    wait_until(lambda: IPV4_PEER not in str(first.routes()), what="no route", deadline_s=SOON_S)

    named = [line for line in overlay.log(first)[after:].splitlines() if "no IPv6 subnet" in line]
    assert len(named) == 1, named
    assert IPV4_PEER in named[0]
    (refused,) = [peer["refused"] for peer in peers if peer["subnet"] == IPV4_PEER]
    assert refused is None


def test_ipv6_that_is_disabled_on_a_running_host_is_named_once_and_ipv4_continues(
    overlay: Overlay, hosts: list[Host]
) -> None:
    """When IPv6 is enabled again, the hosts reach each other in both families."""
    first, second, third = hosts
    after = len(overlay.log(second))
    with (
        PingStream(first, second.gateway().ip, interval_s=0.01) as ipv4,
        PingStream(first, bridge(third).ip, interval_s=0.01) as of_others,
    ):
        for stream in (ipv4, of_others):
            stream.wait_answered()
        set_ipv6(second, is_on=False)
        overlay.wait_logged(second, DISABLED, after=after)
        for stream in (ipv4, of_others):
            stream.wait_answered()
        set_ipv6(second, is_on=True)
        overlay.give_ipv6(second)
        wait_reached(*hosts)
        for stream in (ipv4, of_others):
            stream.wait_answered()

    assert (ipv4.lost(), of_others.lost()) == ([], [])
    assert overlay.log(second)[after:].count(DISABLED) == 1


def test_a_host_that_starts_with_disabled_ipv6_names_it_once(overlay: Overlay, hosts: list[Host]) -> None:
    """The host waits. The path of its containers remains."""
    first, second, _ = hosts
    subnet = bridge(second)
    with PingStream(first, second.gateway().ip, interval_s=0.01) as ipv4:
        ipv4.wait_answered()
        overlay.daemons[second.name].kill()
        set_ipv6(second, is_on=False)
        after = len(overlay.log(second))
        overlay.daemons[second.name] = second.launch_flanneld(f"--store={overlay.etcd.url}")
        overlay.wait_logged(second, f"Waiting for {DISABLED}", after=after)
        ipv4.wait_answered()
        set_ipv6(second, is_on=True)
        overlay.give_ipv6(second)
        overlay.wait_ready(second)
        ipv4.wait_answered()

    assert ipv4.lost() == []
    assert overlay.log(second)[after:].count(DISABLED) == 1
    assert bridge(second) == subnet
    wait_reached(*hosts)


def test_an_address_on_two_interfaces_is_named_once(overlay: Overlay, hosts: list[Host]) -> None:
    """Flanneld starts when one of the interfaces loses the address."""
    host = hosts[2]
    address, subnet = ipv6_underlay(host), bridge(host)
    overlay.daemons[host.name].kill()
    host.run(
        ["ip", "-batch", "-"],
        text=f"link add eth9 type bridge\nlink set eth9 up\naddress add {address} dev eth9 nodad\n",
    )
    after = len(overlay.log(host))
    overlay.daemons[host.name] = host.launch_flanneld(f"--store={overlay.etcd.url}", f"--iface={address.ip}")
    named = f"{address.ip} is an address of eth0 and eth9: select one of them by its name with --iface"
    overlay.wait_logged(host, named, after=after)

    host.run(["ip", "link", "delete", "eth9"])
    overlay.wait_ready(host)

    assert overlay.log(host)[after:].count(named) == 1
    assert bridge(host) == subnet
    wait_reached(*hosts)
