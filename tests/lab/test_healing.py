"""flanneld repairs any damage to its objects while packets flow, and does not touch other objects."""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from pyflannel.wire.forwarder_control import Kind, Peer, encode_peers
from testlab.faults import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

HEALED_S = 60.0
"""Deadline of a repair. The requirement is one second, but other programs may load the machine."""

PING_INTERVAL_S = 0.005
SUBNET_ENV = "/run/flannel/subnet.env"

FOREIGN = """
link add decoy0 type veth peer name decoy1
link set decoy0 up
link set decoy1 up
address add 10.7.0.1/24 dev decoy0
route add 10.8.0.0/16 via 10.7.0.2
route add 10.99.0.0/16 dev decoy0 proto static
route add 10.100.250.0/24 via 10.7.0.2
route add 10.100.0.0/16 dev decoy0 table 77
rule add from 10.7.0.0/24 lookup 77
tuntap add mode tun name decoy9
link set decoy9 up
link set decoy9 alias foreign
address add 10.9.0.1/24 dev decoy9
"""
"""Objects of other programs, also in the network of flannel."""

FOREIGN_FILTERS = """
table inet decoy { chain forward { type filter hook forward priority 1; ip saddr 10.7.0.0/24 accept; }; }
"""


@dataclass(frozen=True)
class Damage:
    """Damage by another program, and the log lines that must report it.

    Attributes:
        words: a shell command on the host.
        found: texts that the log must contain; none if no repair is necessary.
    """

    words: str
    found: tuple[str, ...]


DAMAGE = {
    "link down": Damage("ip link set flannel0 down", ("link flannel0: not up",)),
    "link deleted": Damage(
        "ip link delete flannel0", ("link flannel0: missing", "forwarder of flannel0: not attached")
    ),
    "MTU": Damage("ip link set flannel0 mtu 1300", ("link flannel0: mtu 1300, wanted 1472",)),
    "MTU too small for IPv6": Damage("ip link set flannel0 mtu 600", ("mtu 600, wanted 1472",)),
    "queue length": Damage("ip link set flannel0 txqueuelen 7", ("queue length 7, wanted 500",)),
    "alias": Damage("ip link set flannel0 alias mine", ("alias mine, wanted pyflannel",)),
    "IPv6": Damage("echo 0 >/proc/sys/net/ipv6/conf/flannel0/disable_ipv6", ("link flannel0: ipv6",)),
    "IPv6 address": Damage(
        "echo 0 >/proc/sys/net/ipv6/conf/flannel0/disable_ipv6; ip address add fd00::1/64 dev flannel0",
        ("link flannel0: ipv6",),
    ),
    "address removed": Damage(
        "ip address flush dev flannel0", ("address", "on flannel0: missing", "route 10.100.0.0/16: missing")
    ),
    "address added": Damage(
        "ip address add 10.6.0.1/24 dev flannel0", ("address 10.6.0.1/24 on flannel0: not wanted",)
    ),
    "address replaced": Damage(
        "ip address flush dev flannel0; ip address add 10.100.200.1/16 dev flannel0",
        ("address 10.100.200.1/16 on flannel0: not wanted", "on flannel0: missing"),
    ),
    "route removed": Damage("ip route delete 10.100.0.0/16", ("route 10.100.0.0/16: missing",)),
    "route replaced": Damage(
        "ip route replace 10.100.0.0/16 via 10.7.0.2", ("route 10.100.0.0/16: link decoy0, wanted flannel0",)
    ),
    "route replaced by a blackhole": Damage(
        "ip route replace blackhole 10.100.0.0/16", ("route 10.100.0.0/16", "blackhole")
    ),
    "route shadowed": Damage(
        "ip route prepend 10.100.0.0/16 via 10.7.0.2", ("route 10.100.0.0/16: link decoy0, wanted flannel0",)
    ),
    "route added": Damage("ip route add 10.5.0.0/16 dev flannel0", ("route 10.5.0.0/16: not wanted",)),
    "forwarder killed": Damage("pkill -KILL -x flannel-forward", ("forwarder of flannel0: missing",)),
    "forwarder terminated": Damage("pkill -TERM -x flannel-forward", ("forwarder of flannel0: missing",)),
    "filter's jump deleted": Damage("iptables -D FORWARD 2", ("iptables chain FLANNEL-FWD in filter: ",)),
    "filter flushed": Damage("iptables -F FLANNEL-FWD", ("iptables chain FLANNEL-FWD in filter: ",)),
    "filter turned round": Damage(
        "iptables -I FLANNEL-FWD -s 10.100.0.0/16 -j DROP", ("iptables chain FLANNEL-FWD in filter: ",)
    ),
    "subnet.env deleted": Damage(f"rm {SUBNET_ENV}", (f"file {SUBNET_ENV}: missing",)),
    "subnet.env changed": Damage(
        f"sed -i s/1472/1500/ {SUBNET_ENV}", (f"file {SUBNET_ENV}: its text differs",)
    ),
    "subnet.env truncated": Damage(f": >{SUBNET_ENV}", (f"file {SUBNET_ENV}: its text differs",)),
    "several at once": Damage(
        f"ip link set flannel0 mtu 1300; ip route replace 10.100.0.0/16 via 10.7.0.2; rm {SUBNET_ENV}; "
        "pkill -KILL -x flannel-forward; ip address add 10.6.0.1/24 dev flannel0",
        (
            "mtu 1300, wanted 1472",
            "route 10.100.0.0/16: link decoy0, wanted flannel0",
            f"file {SUBNET_ENV}: missing",
            "forwarder of flannel0: missing",
            "address 10.6.0.1/24 on flannel0: not wanted",
        ),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def joined(overlay) -> None:
    """All four hosts in one network, with foreign objects on each."""

    def join(host: Host) -> None:
        overlay.join_without_audits(host)
        host.run(["ip", "-batch", "-"], text=FOREIGN)
        host.run(["nft", "-f", "-"], text=FOREIGN_FILTERS)
        host.run(["iptables", "-I", "FORWARD", "-s", "10.7.0.0/24", "-j", "ACCEPT"])

    overlay.lab.each(join)
    overlay.settle(*overlay.hosts.values())


@pytest.fixture(scope="module")
def stream_to(overlay, ping_stream) -> Iterator[Callable[[Host], Any]]:
    """Pings from a neighbour to the flannel0 of a host: one stream for each host, until the module ends."""
    streams: dict[str, Any] = {}

    def to(host: Host) -> Any:
        if host.name not in streams:
            source = overlay.hosts[NEIGHBOUR[host.name]]
            address = host.lease().network_address
            streams[host.name] = ping_stream(source, address, interval_s=PING_INTERVAL_S)
        return streams[host.name]

    yield to
    for stream in streams.values():
        stream.stop()


NEIGHBOUR = {"docker1": "docker3", "docker2": "docker4", "docker3": "docker1", "docker4": "docker2"}
"""The neighbour of each host, on the other segment."""

victims = itertools.cycle(NEIGHBOUR)
"""The hosts in turn, because flanneld treats many repairs on one host as a fight."""


def repaired(log: str) -> list[str]:
    """Return the log lines about repairs."""
    return [line for line in log.splitlines() if "Repaired " in line]


def wait_as_before(overlay, host: Host, before: dict[str, Any]) -> None:
    try:
        wait_until(lambda: overlay.state(host) == before, what=f"{host.name} heals", deadline_s=HEALED_S)
    except LabError:
        assert overlay.state(host) == before, overlay.log(host)[-2000:]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_repaired_logged_and_counted(overlay, stream_to, figures, request, damage: Damage) -> None:
    """Afterwards the whole host is as before, including foreign objects, and packets flow."""
    host = overlay.hosts[next(victims)]
    stream = stream_to(host)
    stream.wait_answered()
    before, said = overlay.state(host), len(overlay.log(host))
    repairs = overlay.status(host).reconcile.repairs

    began, begun_at = time.monotonic(), time.time()
    host.run(["sh", "-c", damage.words], check=False)
    damaged_s = time.monotonic() - began
    wait_as_before(overlay, host, before)
    healed_s = time.monotonic() - began

    overlay.wait_logged(host, "Repaired", *damage.found, after=said)
    stream.wait_answered()
    status = overlay.wait_ready(host)
    assert status.reconcile.repairs > repairs
    assert any(status.reconcile.last_repair in line for line in repaired(overlay.log(host)[said:]))
    figures(
        f"{request.node.callspec.id}: as before {healed_s * 1e3:.0f} ms after the command began"
        f" (it took {damaged_s * 1e3:.0f} ms), longest time without an answer"
        f" {stream.longest_gap_s(begun_at - 0.05) * 1e3:.0f} ms"
    )


def test_a_link_deleted_ten_times_is_restored(overlay, stream_to, figures) -> None:
    """The link is created again after each deletion, or after the pause for a repeated repair."""
    host = overlay.hosts["docker1"]
    stream_to(host).wait_answered()
    before = overlay.state(host)

    began = time.monotonic()
    for _ in range(10):
        host.run(["ip", "link", "delete", "flannel0"], check=False)
    wait_as_before(overlay, host, before)

    figures(f"link deleted ten times: as before after {time.monotonic() - began:.2f} s")
    overlay.wait_one_forwarder(host)
    stream_to(host).wait_answered()


def test_a_route_that_the_kernel_never_uses_is_kept(overlay, stream_to) -> None:
    """The kernel never uses this route, so it is harmless."""
    host = overlay.hosts["docker2"]
    said = len(overlay.log(host))
    host.run(["ip", "route", "append", "10.100.0.0/16", "via", "10.7.0.3"])
    before = overlay.state(host)

    host.run(["ip", "link", "set", "flannel0", "alias", "mine"])
    wait_as_before(overlay, host, before)

    overlay.wait_logged(host, "alias mine, wanted pyflannel", after=said)
    assert not any("route" in line for line in repaired(overlay.log(host)[said:]))
    host.run(["ip", "route", "delete", "10.100.0.0/16", "via", "10.7.0.3"])


@pytest.mark.parametrize("kind", ["emptied", "misled"])
def test_a_changed_table_of_peers_is_repaired(overlay, stream_to, kind: str) -> None:
    """Any process with access to the forwarder's socket may change the table.

    The forwarder reports the change.
    """
    host, peer = overlay.hosts["docker4"], overlay.hosts["docker1"]
    stream_to(host).wait_answered()
    before, said = overlay.state(host), len(overlay.log(host))
    wrong = Peer(int(peer.lease().network_address), 24, int(IPv4Address("10.10.10.77")), 8285)

    overlay.ask_forwarder(host, Kind.REPLACE_PEERS, encode_peers([] if kind == "emptied" else [wrong]))
    wait_as_before(overlay, host, before)

    found = [f"peer {other.lease()} of flannel0" for other in overlay.hosts.values() if other is not host]
    if kind == "misled":
        found[0] += ": address 10.10.10.77, wanted 10.10.10.101"
    overlay.wait_logged(host, "Repaired ", *found, after=said)
    stream_to(host).wait_answered()


def test_a_stopped_forwarder_is_started_again(overlay, stream_to) -> None:
    host = overlay.hosts["docker3"]
    before, said = overlay.state(host), len(overlay.log(host))

    overlay.ask_forwarder(host, Kind.STOP)
    wait_as_before(overlay, host, before)

    overlay.wait_logged(host, "Repaired forwarder of flannel0: missing", after=said)
    stream_to(host).wait_answered()


def test_a_hanging_forwarder_is_replaced(overlay, stream_to, figures) -> None:
    """A forwarder that has answered nothing for this time moves no packets either."""
    host = overlay.hosts["docker2"]
    before, pid = overlay.state(host), overlay.forwarder(host).pid

    began = time.monotonic()
    host.run(["pkill", "-STOP", "-x", "flannel-forward"])
    host.run(["ip", "link", "set", "flannel0", "alias", "mine"])
    silent = f"the forwarder (pid {pid}) did not respond"
    overlay.wait_status(host, lambda status: silent in str(status.waiting_for), "is not ready", HEALED_S)
    noticed_s = time.monotonic() - began
    wait_as_before(overlay, host, before)

    stream_to(host).wait_answered()
    assert overlay.forwarder(host).pid != pid
    overlay.wait_one_forwarder(host)
    figures(
        f"stopped forwarder: noticed after {noticed_s:.1f} s, replaced after {time.monotonic() - began:.1f} s"
    )


def test_the_run_directory_is_created_again(overlay, stream_to, figures) -> None:
    """The directory contains subnet.env and the sockets of forwarder and daemon. flanneld creates all of
    these files again.
    """
    host = overlay.hosts["docker3"]
    before = overlay.state(host)

    began = time.monotonic()
    host.run(["rm", "-r", "/run/flannel"], check=False)  # fails if a file is created again in the meantime
    wait_as_before(overlay, host, before)

    figures(f"run directory deleted: as before after {(time.monotonic() - began) * 1e3:.0f} ms")
    overlay.wait_one_forwarder(host)
    stream_to(host).wait_answered()
    wait_until(
        lambda: json.loads(host.flannelctl("--json", "status", check=False))["is_live"],
        what="the daemon answers again",
        deadline_s=HEALED_S,
    )


def test_flannelctl_counts_and_names_repairs(overlay) -> None:
    host = overlay.hosts["docker2"]
    before = json.loads(host.flannelctl("--json", "status"))["reconcile"]

    host.run(["ip", "link", "set", "flannel0", "down"])
    overlay.wait_status(
        host,
        lambda status: (
            status.reconcile.repairs > before["repairs"] and "not up" in status.reconcile.last_repair
        ),
        "counts a repair",
    )

    after = json.loads(host.flannelctl("--json", "status"))["reconcile"]
    assert after["repairs"] > before["repairs"]
    assert after["last_repair"].startswith("link flannel0: not up")


def test_damage_is_repaired_while_the_store_is_unreachable(overlay, stream_to) -> None:
    """The last known leases remain the plan."""
    host = overlay.hosts["docker4"]
    stream = stream_to(host)
    before = overlay.state(host)

    with paused(overlay.etcd_program):
        overlay.wait_status(host, lambda status: not status.store.is_connected, "misses the store", HEALED_S)
        host.run(["sh", "-c", "ip link delete flannel0; pkill -KILL -x flannel-forward"])
        wait_as_before(overlay, host, before)
        stream.wait_answered()

    overlay.wait_status(host, lambda status: status.is_ready, "is ready again", HEALED_S)


def test_a_repair_that_another_program_undoes_is_delayed_and_reported_once(overlay, stream_to) -> None:
    """A program deletes the route repeatedly. When the program stops, the route is repaired."""
    host = overlay.hosts["docker4"]
    before, logged = overlay.state(host), len(overlay.log(host))
    delete = "while :; do ip route delete 10.100.0.0/16 2>/dev/null; sleep 0.05; done"
    opponent = host.start(["sh", "-c", delete], name="opponent")
    delayed = "Delayed the next repair: another program keeps changing this object"

    def repairs_since_delayed() -> int:
        return len(repaired(overlay.log(host)[logged:].partition(delayed)[2]))

    try:
        overlay.wait_logged(host, f"{delayed} object=route 10.100.0.0/16: missing", after=logged)
        overlay.wait_status(
            host, lambda status: "route 10.100.0.0/16: missing" in str(status.waiting_for), "is not ready"
        )
        wait_until(lambda: repairs_since_delayed() >= 3, what="repairs after the pause", deadline_s=HEALED_S)
    finally:
        opponent.kill()
    wait_as_before(overlay, host, before)

    stream_to(host).wait_answered()
    assert overlay.log(host)[logged:].count(delayed) == 1


def test_the_underlay_interface_is_set_down_and_up(overlay, stream_to) -> None:
    """The kernel removes the interface's routes, and the manager of the interface restores them. Other
    objects remain.
    """
    host = overlay.hosts["docker2"]
    stream = stream_to(host)
    before, pid = overlay.state(host), overlay.forwarder(host).pid

    host.run(["ip", "link", "set", "eth0", "down"])
    wait_until(lambda: stream.is_silent_for(0.3), what="no answer", deadline_s=HEALED_S)
    host.run(["ip", "link", "set", "eth0", "up"])
    host.run(["ip", "route", "add", "default", "via", str(host.place.segment.gateway.ip)])

    stream.wait_answered()
    wait_as_before(overlay, host, before)
    assert overlay.forwarder(host).pid == pid
    overlay.wait_ready(host)


def test_the_mtu_follows_the_underlay(overlay, stream_to, figures) -> None:
    host = overlay.hosts["docker3"]
    stream = stream_to(host)
    stream.wait_answered()
    before, begun_at = overlay.state(host), time.time()

    host.run(["ip", "link", "set", "eth0", "mtu", "1400"])
    wait_until(
        lambda: (
            host.subnet_env()["FLANNEL_MTU"] == "1372"
            and (forwarder := overlay.forwarder(host)) is not None
            and forwarder.settings.mtu == 1372
        ),
        what="MTU 1372",
        deadline_s=HEALED_S,
    )
    assert overlay.state(host)["links"]["flannel0"]["mtu"] == 1372
    stream.wait_answered()
    host.run(["ip", "link", "set", "eth0", "mtu", "1500"])
    wait_as_before(overlay, host, before)

    stream.wait_answered()
    figures(
        f"MTU changed twice: longest time without an answer {stream.longest_gap_s(begun_at) * 1e3:.0f} ms"
    )


def test_a_new_address_of_the_host_is_published(overlay, stream_to, figures) -> None:
    """The subnet remains.

    Peers send to the new address and accept packets from it. This is the last test of the module.
    """
    host, peer = overlay.hosts["docker4"], overlay.hosts["docker1"]
    stream = stream_to(host)
    stream.wait_answered()
    lease, new = host.lease(), IPv4Interface("192.168.50.142/24")
    lines = [
        f"address delete {host.place.address} dev eth0",
        f"address add {new} dev eth0",
        f"route add default via {host.place.segment.gateway.ip}",
    ]

    began, begun_at = time.monotonic(), time.time()
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
    wait_until(
        lambda: any(
            entry.address == int(new.ip) and entry.subnet == int(lease.network_address)
            for entry in overlay.peers(peer)
        ),
        what=f"{peer.name} sends to {new.ip}",
        deadline_s=HEALED_S,
    )
    followed_s = time.monotonic() - began
    stream.wait_answered()

    status = overlay.wait_ready(host)
    assert (status.lease.subnet, status.underlay.public_ip) == (lease, new.ip)
    overlay.wait_one_forwarder(host)
    figures(
        f"address changed: peers follow after {followed_s:.2f} s,"
        f" longest time without an answer {stream.longest_gap_s(begun_at):.2f} s"
    )
