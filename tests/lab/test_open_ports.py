"""--open-ports opens the port of the tunnel in each family, on hosts whose firewall drops all other input."""

import os
from collections.abc import Callable
from functools import partial

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.overlay import Overlay
from testlab.pinging import wait_each_reaches

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 30.0
NAMES = ("docker1", "docker2", "docker3")
FIREWALL = """
iptables -A INPUT -i lo -j ACCEPT
iptables -A INPUT -p tcp -j ACCEPT
iptables -A INPUT -p icmp -j ACCEPT
iptables -P INPUT DROP
ip6tables -A INPUT -p ipv6-icmp -j ACCEPT
ip6tables -P INPUT DROP
"""
"""Neighbour discovery, etcd and pings pass; other input is dropped."""


@pytest.fixture(scope="module")
def hosts(overlay: Overlay) -> list[Host]:
    """Three hosts with addresses of both families, a bridge, and a firewall."""
    found = [overlay.hosts[name] for name in NAMES]
    overlay.give_ipv6(*found)
    for host in found:
        host.run(["ip", "-batch", "-"], text="link add br7 type bridge\nlink set br7 up\n")
        host.run(["sh", "-ec", FIREWALL])
    return found


def reaches(family: int) -> Callable[[Host, Host], bool]:
    """Return a function that returns whether the bridges of two hosts reach each other in a family."""
    name = "FLANNEL_SUBNET" if family == 4 else "FLANNEL_IPV6_SUBNET"

    def asks(host: Host, other: Host) -> bool:
        source, target = (one.subnet_env()[name].partition("/")[0] for one in (host, other))
        return host.run(["ping", "-n", "-c1", "-W1", "-I", source, target], check=False).returncode == 0

    return asks


def opened(host: Host) -> dict[str, list[str]]:
    """Return the accepted ports of the tunnel, by program."""
    return {
        program: [
            line.partition("--dport ")[2].split()[0]
            for line in host.run([f"{program}-save", "-t", "filter"]).stdout.splitlines()
            if line.startswith("-A FLANNEL-INPUT")
        ]
        for program in ("iptables", "ip6tables")
    }


@pytest.mark.parametrize(
    ("backend", "ports", "nftables"),
    [
        ({"Type": "vxlan"}, ("8472", "8472"), False),
        ({"Type": "vxlan"}, ("8472", "8472"), True),
        ({"Type": "wireguard"}, ("51820", "51821"), False),
        ({"Type": "wireguard", "Mode": "ipv6"}, ("51820", "51820"), True),
    ],
    ids=["vxlan", "vxlan with nftables", "wireguard", "wireguard over IPv6 with nftables"],
)
def test_the_flag_opens_the_port_in_both_families(
    overlay: Overlay, hosts: list[Host], backend: dict[str, str], ports: tuple[str, str], nftables: bool
) -> None:
    """Without the flag, the firewall drops the packets of the tunnel in each family.

    flanneld without the flag removes the chain.
    """
    config = Overlay.config(
        EnableIPv6=True, IPv6Network="fd00:5::/48", EnableNFTables=nftables, Backend=backend
    )
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    for host in hosts:
        if host.name in overlay.daemons:
            overlay.daemons[host.name].kill()
        host.run(["rm", "-f", "/var/lib/flannel/last-known.json"])

    def start(host: Host, *flags: str) -> None:
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", *flags)
        env = host.subnet_env()
        addresses = [env["FLANNEL_SUBNET"], f"{env['FLANNEL_IPV6_SUBNET']} nodad"]
        lines = ["address flush dev br7 scope global", *(f"address add {one} dev br7" for one in addresses)]
        host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")

    together([partial(start, host, "--open-ports") for host in hosts])
    for family in (4, 6):
        wait_each_reaches(hosts, reaches(family), SOON_S)
    wanted = {"iptables": [ports[0]], "ip6tables": [ports[1]]}
    assert [opened(host) for host in hosts] == [wanted] * len(hosts)

    closed, other, _ = hosts
    overlay.daemons[closed.name].kill()
    start(closed)
    wait_until(
        lambda: opened(closed) == {"iptables": [], "ip6tables": []}, what="no open port", deadline_s=SOON_S
    )
    assert [reaches(family)(other, closed) for family in (4, 6)] == [False, False]
