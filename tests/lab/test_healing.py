"""Whatever somebody does to what we installed is undone while packets flow, and nothing else is touched."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.host import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

HEALED_S = 5.0
"""Generous: a second is meant, and milliseconds are measured, but machines are shared."""

AUDITED_S = 20.0
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
link set decoy9 alias somebody
address add 10.9.0.1/24 dev decoy9
"""
"""What other programs may have beside us, in our own network too."""


@dataclass(frozen=True)
class Damage:
    """What somebody does, and what must be said to have been found.

    Attributes:
        words: a shell command on the host.
        found: each is a part of the line; none where what was done needs no repair.
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
    "forwarder killed": Damage(
        "kill -KILL $(pgrep -f pyflannel.programs.forwarder)", ("forwarder of flannel0: missing",)
    ),
    "forwarder terminated": Damage(
        "kill -TERM $(pgrep -f pyflannel.programs.forwarder)", ("forwarder of flannel0: missing",)
    ),
    "subnet.env deleted": Damage(f"rm {SUBNET_ENV}", (f"file {SUBNET_ENV}: missing",)),
    "subnet.env changed": Damage(
        f"sed -i s/1472/1500/ {SUBNET_ENV}", (f"file {SUBNET_ENV}: its text differs",)
    ),
    "subnet.env truncated": Damage(f": >{SUBNET_ENV}", (f"file {SUBNET_ENV}: its text differs",)),
    "several at once": Damage(
        f"ip link set flannel0 mtu 1300; ip route replace 10.100.0.0/16 via 10.7.0.2; rm {SUBNET_ENV}; "
        "kill -KILL $(pgrep -f pyflannel.programs.forwarder); ip link set flannel0 down",
        (),
    ),
    "link deleted ten times": Damage(
        "for i in 1 2 3 4 5 6 7 8 9 10; do ip link delete flannel0 2>/dev/null; done",
        ("link flannel0: missing",),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def joined(overlay) -> None:
    """All four hosts on one network, with things on each that are not ours."""

    def join(host: Host) -> None:
        overlay.join(host)
        host.run(["ip", "-batch", "-"], text=FOREIGN)

    overlay.lab.each(join)
    for host in overlay.hosts.values():
        wait_until(
            lambda host=host: overlay.status(host).peers == 3 and "tentative" not in str(overlay.state(host)),
            what=f"{host.name} knows all and is at rest",
            deadline_s=20,
        )


@pytest.fixture(scope="module")
def stream_to(overlay, ping_stream) -> Iterator[Callable[[Host], Any]]:
    """Pings from docker1 to another host's flannel0, one stream for each as long as the module lasts."""
    streams: dict[str, Any] = {}

    def to(host: Host) -> Any:
        if host.name not in streams:
            address = host.lease().network_address
            streams[host.name] = ping_stream(overlay.hosts["docker1"], address, interval_s=PING_INTERVAL_S)
        return streams[host.name]

    yield to
    for stream in streams.values():
        stream.stop()


def wait_as_before(overlay, host: Host, before: dict[str, Any], deadline_s: float = HEALED_S) -> None:
    try:
        wait_until(lambda: overlay.state(host) == before, what=f"{host.name} heals", deadline_s=deadline_s)
    except LabError:
        assert overlay.state(host) == before, overlay.log(host)[-2000:]


victims = itertools.cycle(["docker2", "docker3", "docker4"])


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_undone_said_and_counted(overlay, stream_to, figures, request, damage: Damage) -> None:
    """Afterwards the whole host is as it was, the foreign things on it too, and packets flow."""
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

    lines = [line for line in overlay.log(host)[said:].splitlines() if "Repaired" in line]
    assert lines
    assert all(part in "\n".join(lines) for part in damage.found)
    stream.wait_answered()
    status = overlay.status(host)
    assert status.is_ready
    assert status.reconcile.repairs > repairs
    assert status.reconcile.last_repair in lines[-1]
    figures(
        f"{request.node.callspec.id}: as before {healed_s * 1e3:.0f} ms after the command began"
        f" (it took {damaged_s * 1e3:.0f} ms), longest time without an answer"
        f" {stream.longest_gap_s(begun_at - 1) * 1e3:.0f} ms"
    )
