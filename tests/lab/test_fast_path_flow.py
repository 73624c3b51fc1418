"""Mode flow of the daemon: the cache is used while the firewall permits it, and never without the daemon."""

import json
import os
import sys

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from testlab import kernel_programs
from testlab.inside import run_inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
SEND = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", 5000))
for _ in range(100):
    sender.sendto(b"x", (sys.argv[1], 5000))
"""


def look(host):
    return run_inside(host, kernel_programs.look)


def cached(box, far, host) -> int:
    """Send a hundred packets of one flow. Return the number that bypasses the firewall of the host."""
    before = run_inside(host, kernel_programs.packets_by_outcome)["cached_out"]
    box.run_in_network([sys.executable, "-c", SEND, str(far.address)])
    return run_inside(host, kernel_programs.packets_by_outcome)["cached_out"] - before


def passed_veth(box, far, host) -> int:
    """Send a hundred packets of one flow. Return the number at the host's end of the receiver's veth."""

    def sent() -> int:
        (link,) = [word.removeprefix("flannel_short at ") for word in look(host).programs if "short" in word]
        return int(host.run(["cat", f"/sys/class/net/{link}/statistics/tx_packets"]).stdout)

    before = sent()
    box.run_in_network([sys.executable, "-c", SEND, str(far.address)])
    return sent() - before


def wait_uncached(overlay, host, reason: str) -> None:
    def is_shown(status) -> bool:
        return status.fast_path is not None and reason in " ".join(status.fast_path.uncached or ("none",))

    overlay.wait_status(host, is_shown, f"shows {reason}")


@pytest.mark.parametrize(("backend", "mtu"), [("udp", 1472), ("vxlan", 1450)])
def test_flows_are_cached_while_the_firewall_permits_caching(overlay, backend, mtu):
    hosts = one, two = overlay.hosts["docker1"], overlay.hosts["docker4"]
    config = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": backend}})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    for host in hosts:
        host.run(["sysctl", "-qw", f"{LIBERAL}=0"])
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", "--fast-path=flow")
    overlay.settle(*hosts)
    box, far = boxes = [host.container("box", gateway=host.gateway(), mtu=mtu) for host in hosts]
    wait_reached(boxes, deadline_s=DEADLINE_S)
    wait_until(
        lambda: any(word.startswith("flannel_short at ") for word in look(one).programs),
        what="the container's veth has a program",
        deadline_s=DEADLINE_S,
    )
    wait_uncached(overlay, one, LIBERAL)
    one.run(["sysctl", "-qw", f"{LIBERAL}=1"])
    wait_uncached(overlay, one, "none")
    wait_until(lambda: cached(box, far, one) > 50, what="packets are cached", deadline_s=DEADLINE_S)

    # The host's end of the receiver's veth is skipped, unless it limits the rate of the container.
    wait_until(lambda: passed_veth(box, far, two) < 50, what="packets skip the veth", deadline_s=DEADLINE_S)
    (shaped,) = [word.removeprefix("flannel_short at ") for word in look(two).programs if "short" in word]
    shape = ["dev", shaped, "root", "tbf", "rate", "1gbit", "burst", "64kb", "latency", "50ms"]
    two.run(["tc", "qdisc", "add", *shape])
    wait_until(lambda: passed_veth(box, far, two) >= 100, what="packets pass the qdisc", deadline_s=5)
    two.run(["tc", "qdisc", "delete", *shape[:3]])

    # A rule that counts packets prevents the use of the cache.
    one.run(["iptables", "-I", "FORWARD", "-m", "limit", "--limit", "1000/s", "-j", "ACCEPT"])
    wait_uncached(overlay, one, "limit")
    assert cached(box, far, one) == 0
    one.run(["iptables", "-D", "FORWARD", "1"])
    wait_uncached(overlay, one, "none")
    assert cached(box, far, one) > 50

    # A filter of another program at the container's veth prevents the use of the cache.
    (link,) = [word.removeprefix("flannel_short at ") for word in look(one).programs if "short" in word]
    one.run(["tc", "qdisc", "add", "dev", link, "clsact"])
    wait_uncached(overlay, one, "filter of tc")
    assert cached(box, far, one) == 0
    one.run(["tc", "qdisc", "delete", "dev", link, "clsact"])
    wait_uncached(overlay, one, "none")

    # Without a daemon, the permit ends.
    overlay.daemons[one.name].kill()
    wait_until(lambda: cached(box, far, one) == 0, what="no packet is cached", deadline_s=5)
    assert ping(box, far.address).is_reached

    # In mode safe, there is no program at the container's veth.
    overlay.join(one)
    wait_until(
        lambda: not any("short" in word for word in look(one).programs),
        what="no program at the container's veth",
        deadline_s=DEADLINE_S,
    )
    assert cached(box, far, one) == 0
    assert ping(box, far.address).is_reached

    for host, container in zip(hosts, boxes, strict=True):
        container.remove()
        overlay.daemons[host.name].stop()
        host.flannelctl("--store", overlay.etcd.url, "cleanup")
        host.run(["ip", "link", "delete", "br0"])
