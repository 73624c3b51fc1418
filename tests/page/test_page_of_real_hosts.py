"""The page of a real flanneld, in a browser on its host: hosts join, links are cut and repaired."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.browser import Page, browser_page
from testlab.overlay import SOON_S, Overlay, overlay_in
from testlab.shown_network import classes_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

ENDPOINT = "127.0.0.1:8471"
CUT_S = 5.0
"""Maximum time in seconds until the path of a cut link is red."""


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Overlay, Page]]:
    """docker1 and docker2 of a vxlan network, and a browser on docker1."""
    with ExitStack() as opened:
        overlay = opened.enter_context(overlay_in("page"))
        overlay.set_backend("vxlan")
        one, other = overlay.hosts["docker1"], overlay.hosts["docker2"]
        overlay.daemons[one.name] = one.start_flanneld(f"--store={overlay.etcd.url}", f"--http={ENDPOINT}")
        overlay.join(other)
        overlay.settle(one, other)
        page = opened.enter_context(browser_page(["nsenter", f"--net=/proc/{one.init_pid}/ns/net"]))
        page.resize(1440, 900)
        page.open(f"http://{ENDPOINT}/")
        yield overlay, page
        assert page.problems == []


def peer(host: Host) -> str:
    """Return the expression for the classes of a host on the map."""
    return classes_of(host.lease())


def test_a_join_a_cut_link_and_a_repair_appear(network: tuple[Overlay, Page]) -> None:
    overlay, page = network
    other, joining = overlay.hosts["docker2"], overlay.hosts["docker3"]
    page.wait(f"{peer(other)} === 'peer reached'")

    overlay.join(joining)
    page.wait(f"{peer(joining)} === 'peer reached new'")

    overlay.lab.router.run(["ip", "link", "set", joining.name, "down"])
    cut_s = page.wait(f"{peer(joining)}.includes('silent')", CUT_S)
    assert page.run("document.querySelector('#verdict').innerText") == f"{joining.name} does not answer"
    assert page.run(peer(other)) == "peer reached"

    page.run(
        "document.getElementById('tab-hosts').click(); document.querySelector('#hosts tbody button').click()"
    )
    page.wait(
        "document.querySelector('#detail .notice.bad')?.innerText.includes('Packets stop at: underlay')"
    )

    overlay.lab.router.run(["ip", "link", "set", joining.name, "up"])
    repaired_s = page.wait(f"{peer(joining)}.includes('reached')")
    page.wait("document.querySelector('#verdict').innerText === 'All is well: 2 peers answer'")
    print(f"the cut appeared after {cut_s:.1f} s, the repair after {repaired_s:.1f} s")


def test_a_path_with_traffic_is_wider(network: tuple[Overlay, Page]) -> None:
    """Vxlan counts the bytes from each peer. Without other traffic, only replies to probes arrive."""
    overlay, page = network
    one, busy = overlay.hosts["docker1"], overlay.hosts["docker2"]
    is_wide = "document.querySelector('.spoke.busy') !== null"
    page.wait(f"{peer(busy)}.includes('reached') && !({is_wide})")

    ping = ["ping", "-q", "-i", "0.002", "-s", "1300", str(one.lease().network_address)]
    traffic = busy.start(ping, name="ping")
    page.wait(
        f"{is_wide} && /[1-9][0-9.]* [kM]B.s/.test(document.querySelector('#hosts tbody tr').innerText)"
    )
    traffic.kill()
    page.wait(f"!({is_wide})")


def test_a_blocked_tunnel_is_shown_on_the_way_of_the_packet(network: tuple[Overlay, Page]) -> None:
    overlay, page = network
    other = overlay.hosts["docker2"]
    page.wait(f"{peer(other)}.includes('reached')")
    rule = ["INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"]

    other.run(["iptables", "-I", *rule])
    page.wait(f"{peer(other)}.includes('silent')", CUT_S)
    page.run("document.querySelector('#hosts tbody button').click()")
    page.wait("document.querySelector('#detail .notice.bad')?.innerText.includes('Packets stop at: tunnel')")
    assert page.run("document.querySelectorAll('#detail .stop.broken .name')[0].innerText") == "Tunnel device"
    other.run(["iptables", "-D", *rule])
    page.wait(f"{peer(other)}.includes('reached')")


def test_findings_come_from_doctor(network: tuple[Overlay, Page]) -> None:
    overlay, page = network
    one = overlay.hosts["docker1"]
    one.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
    try:
        page.run("document.getElementById('tab-findings').click()")
        page.wait("document.querySelector('#findings .finding .command')?.innerText.includes('ip_forward')")
    finally:
        one.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])


def test_no_probe_is_sent_without_a_page(network: tuple[Overlay, Page]) -> None:
    overlay, page = network
    started = sent_echoes(overlay.hosts["docker1"])
    wait_until(
        lambda: sent_echoes(overlay.hosts["docker1"]) > started,
        what="the page causes probes",
        deadline_s=SOON_S,
    )

    page.call("Page.navigate", url="about:blank")

    counts = [0.0, 0.0]

    def is_quiet() -> bool:
        """Return whether no echo was sent for three seconds."""
        if (count := sent_echoes(overlay.hosts["docker1"])) != counts[0]:
            counts[:] = count, time.monotonic()
        return time.monotonic() > counts[1] + 3.0

    wait_until(is_quiet, what="the probes end", deadline_s=SOON_S)


def sent_echoes(host: Host) -> int:
    names, values = host.run(["grep", "^Icmp:", "/proc/net/snmp"]).stdout.splitlines()
    return int(dict(zip(names.split(), values.split(), strict=True))["OutEchos"])
