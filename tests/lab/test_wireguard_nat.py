"""The wireguard backend behind NATs: hosts reach each other by the endpoints of received handshakes."""

import os
import subprocess
from ipaddress import IPv4Interface

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0
PSK = "pNmrd3Fb+REOszVXyYCjYEOs3QqhHEFA9OO8TRK98Hc="
NAMES = ("public", "nat1", "nat2", "home1", "home2")
FIVE = Topology(
    (LEFT,),
    tuple(HostPlace(name, LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n, name in enumerate(NAMES)),
)

_HOME = """
address add 192.168.1.10/24 dev eth0
link set eth0 up
route add default via 192.168.1.1
"""

_NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname eth0 masquerade
    }
    chain input {
        type filter hook input priority filter
        iifname eth0 ct state new udp dport 51820 drop
    }
}
"""


def put_behind(nat: Host, home: Host) -> None:
    """Move a host from the underlay into a network behind a NAT. Several networks have the same addresses."""
    home.run(["ip", "link", "delete", "eth0"])
    ends = ["eth0", "netns", str(home.init_pid), "type", "veth", "peer", "lan0", "netns", str(nat.init_pid)]
    subprocess.run(["ip", "link", "add", *ends], check=True)
    nat.run(["ip", "-batch", "-"], text="address add 192.168.1.1/24 dev lan0\nlink set lan0 up\n")
    nat.run(["nft", "-f", "-"], text=_NAT)
    home.run(["ip", "-batch", "-"], text=_HOME)


def endpoints(host: Host) -> dict[str, str]:
    """Return the current endpoint of each peer, by its subnet."""
    status = host.run(["wg", "show", "flannel-wg", "dump"]).stdout.splitlines()[1:]
    return {fields[3]: fields[2] for fields in (line.split("\t") for line in status)}


def reaches(host: Host, other: Host) -> bool:
    return host.run(["ping", "-c1", "-W1", str(other.gateway().ip)], check=False).returncode == 0


def test_hosts_behind_two_nats_reach_each_other_and_a_public_host(make_overlay) -> None:
    """Both private networks have the same addresses. One NAT gets another address later."""
    with Lab(f"nat-{os.getpid()}", FIVE) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        overlay = make_overlay(lab, etcd, etcd.start())
        etcd.etcdctl("put", f"{PREFIX}/config", overlay.config(Backend={"Type": "wireguard", "PSK": PSK}))
        public, nat1, nat2, home1, home2 = (lab.hosts[name] for name in NAMES)
        put_behind(nat1, home1)
        put_behind(nat2, home2)
        members = {public: None, home1: nat1, home2: nat2}

        for host, nat in members.items():
            flags = () if nat is None else (f"--public-ip={nat.address}",)
            overlay.daemons[host.name] = host.start_flanneld(f"--store={etcd.url}", *flags)
        for host in members:
            bridge = f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\n"
            host.run(["ip", "-batch", "-"], text=f"{bridge}link set docker0 up\n")
            overlay.wait_status(host, lambda status: status.peers == 2, "knows both peers")

        for host in members:
            for other in members:
                if other is not host:
                    host.run(["ping", "-c2", "-W5", "-i0.1", str(other.gateway().ip)])
        keepalives = home1.run(["wg", "show", "flannel-wg", "persistent-keepalive"]).stdout.split()[1::2]
        assert keepalives == ["25", "25"]
        assert home1.run(["wg", "show", "flannel-wg", "preshared-keys"]).stdout.count(PSK) == 2
        assert PSK not in overlay.log(home1)

        # The NAT gets another address, which is not in the lease. The next packet has this address as its
        # source.
        change = f"address delete {nat2.address}/24 dev eth0\naddress add 10.10.10.150/24 dev eth0\n"
        nat2.run(["ip", "-batch", "-"], text=change)
        wait_until(lambda: reaches(home2, public), what="an answer", deadline_s=SOON_S)
        assert endpoints(public)[str(home2.lease())] == "10.10.10.150:51820"

        # A restart keeps the endpoint of the received handshake.
        said = len(overlay.log(public))
        overlay.daemons[public.name].kill()
        overlay.join(public)
        assert endpoints(public)[str(home2.lease())] == "10.10.10.150:51820"
        assert "Repaired" not in overlay.log(public)[said:]
        assert reaches(public, home2)
